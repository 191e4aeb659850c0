"""Is the worker alive, and is it ready? What stops deliveries, by part, and how often each part failed.

Ready means that the queue and the table have answered and that nothing is wrong that stops deliveries. A part that
fails is logged once; while it goes on, once a minute with a sum; and once when it has worked for some seconds.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, get_args

import structlog

log = structlog.get_logger()

Part = Literal[
    "queue",
    "lease",
    "acknowledge",
    "send",
    "table",
    "claim",
    "checkpoint",
    "settings",
    "ages",
    "reaper",
    "credentials",
    "connections",
    "dead letters",
]
PARTS: Final[tuple[Part, ...]] = get_args(Part)

_STOPS_NOTHING: Final = ("reaper",)
"""Its failures are counted and logged, but deliveries go on."""
_SUMMED_UP_SECONDS: Final = 60.0
_LONGEST_SILENCE_SECONDS: Final = 40.0
"""Longer than any pause between two tries, with the time-outs of a call."""
_WORKS_AGAIN_SECONDS: Final = 5.0
"""A part that fails and works by turns is one failing part, not many lines."""


@dataclass(slots=True)
class _State:
    trouble: str | None = None
    failures: int = 0
    failed_at: float = float("-inf")
    failures_told: int = 0
    told_at: float | None = None
    """When it was last logged as failing; None while the log says that it works."""


class Health:
    """What stops deliveries. `must_report`: parts that count as trouble until they have worked once."""

    def __init__(self, *must_report: Part, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._states = {part: _State() for part in PARTS}
        self._watched: dict[Part, Callable[[], str | None]] = {}
        for part in must_report:
            self._states[part].trouble = "has not answered yet"

    def watch(self, part: Part, trouble: Callable[[], str | None]) -> None:
        """Ask this part whenever somebody asks, beside what parts report."""
        self._watched[part] = trouble

    def ok(self, part: Part) -> None:
        state = self._states[part]
        if state.trouble is not None:
            state.trouble = None
            if state.told_at is None:
                log.info("dependency.ok", part=part)

    def failed(self, part: Part, reason: str) -> None:
        """It fails; the caller waits and tries again."""
        state = self._states[part]
        now = self._clock()
        state.trouble = reason
        state.failures += 1
        state.failed_at = now
        if state.told_at is None or now - state.told_at >= _SUMMED_UP_SECONDS:
            log.warning("dependency.failing", part=part, reason=reason, failures=state.failures - state.failures_told)
            state.told_at = now
            state.failures_told = state.failures

    def check(self) -> None:
        """Let the watched parts report, and log what works again. Call it about once a second."""
        self._forget_old_troubles()
        for part, trouble in self._watched.items():
            reason = trouble()
            if reason is None:
                self.ok(part)
            else:
                self.failed(part, reason)
        now = self._clock()
        for part, state in self._states.items():
            if state.told_at is not None and state.trouble is None and now - state.failed_at >= _WORKS_AGAIN_SECONDS:
                log.info("dependency.ok", part=part, failures=state.failures - state.failures_told)
                state.told_at = None
                state.failures_told = state.failures

    @property
    def troubles(self) -> dict[Part, str]:
        """By part, in an operator's words. Empty: ready."""
        self._forget_old_troubles()
        for part, trouble in self._watched.items():
            self._states[part].trouble = trouble()
        return {
            part: state.trouble
            for part, state in self._states.items()
            if state.trouble is not None and part not in _STOPS_NOTHING
        }

    def _forget_old_troubles(self) -> None:
        """Whoever still waits for a part tries again sooner than that; perhaps nobody does any more."""
        now = self._clock()
        for state in self._states.values():
            if state.failures and now - state.failed_at >= _LONGEST_SILENCE_SECONDS:
                state.trouble = None

    @property
    def failures(self) -> dict[Part, int]:
        """Failed calls since the start, by part; for a watched part, seconds in which it was in trouble."""
        return {part: state.failures for part, state in self._states.items()}
