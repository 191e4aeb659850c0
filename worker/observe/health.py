"""Whether the worker is ready, which components stop deliveries, and how often each component has failed.

The worker is ready once the queue and the table have responded and while no component stops deliveries. A failing
component is logged once, then once per minute with the number of failures, and again when it has worked for 5 seconds.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, get_args

import structlog

log = structlog.get_logger()

Component = Literal[
    "queue",
    "lease",
    "acknowledge",
    "send",
    "table",
    "claim",
    "checkpoint",
    "settings",
    "history",
    "payloads",
    "ages",
    "reaper",
    "credentials",
    "connections",
    "dead_letters",
    "receipts",
]
COMPONENTS: Final[tuple[Component, ...]] = get_args(Component)

_STOPS_NOTHING: Final = ("reaper",)
"""Their failures are counted and logged, but deliveries continue."""
_LOG_INTERVAL_SECONDS: Final = 60.0
_MAX_SILENCE_SECONDS: Final = 40.0
"""Longer than any delay between two attempts, including the timeout of a call."""
_RECOVERED_SECONDS: Final = 5.0
"""A component must work for this long to be logged as recovered, so that one that flaps causes few lines."""


@dataclass(slots=True)
class _State:
    problem: str | None = None
    failures: int = 0
    failed_at: float = float("-inf")
    failures_logged: int = 0
    logged_at: float | None = None
    """When it was last logged as failing; None if its last line reported recovery."""


class Health:
    """The state of all components. Those in `must_report` count as failing until they have worked once."""

    def __init__(self, *must_report: Component, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._states = {component: _State() for component in COMPONENTS}
        self._checks: dict[Component, Callable[[], str | None]] = {}
        for component in must_report:
            self._states[component].problem = "has not responded yet"

    def register_check(self, component: Component, problem: Callable[[], str | None]) -> None:
        """Call `problem` on each poll and readiness check. It returns a description of the problem, or None."""
        self._checks[component] = problem

    def recovered(self, component: Component) -> None:
        state = self._states[component]
        if state.problem is not None:
            state.problem = None
            if state.logged_at is None:
                log.info("dependency.ok", component=component)

    def failed(self, component: Component, reason: str) -> None:
        """Record a failed call, which the caller will retry."""
        state = self._states[component]
        now = self._clock()
        state.problem = reason
        state.failures += 1
        state.failed_at = now
        if state.logged_at is None or now - state.logged_at >= _LOG_INTERVAL_SECONDS:
            log.warning(
                "dependency.failing",
                component=component,
                reason=reason,
                failures=state.failures - state.failures_logged,
            )
            state.logged_at = now
            state.failures_logged = state.failures

    def poll(self) -> None:
        """Run the registered checks, and log components that have recovered. Call it about once per second."""
        self._forget_old_problems()
        for component, problem in self._checks.items():
            reason = problem()
            if reason is None:
                self.recovered(component)
            else:
                self.failed(component, reason)
        now = self._clock()
        for component, state in self._states.items():
            if state.logged_at is not None and state.problem is None and now - state.failed_at >= _RECOVERED_SECONDS:
                log.info("dependency.ok", component=component, failures=state.failures - state.failures_logged)
                state.logged_at = None
                state.failures_logged = state.failures

    @property
    def problems(self) -> dict[Component, str]:
        """Descriptions for operators, by component. Empty if the worker is ready."""
        self._forget_old_problems()
        for component, problem in self._checks.items():
            self._states[component].problem = problem()
        return {
            component: state.problem
            for component, state in self._states.items()
            if state.problem is not None and component not in _STOPS_NOTHING
        }

    def _forget_old_problems(self) -> None:
        """Clear problems without a recent failure: a caller that still waited would have retried within that time."""
        now = self._clock()
        for state in self._states.values():
            if state.failures and now - state.failed_at >= _MAX_SILENCE_SECONDS:
                state.problem = None

    @property
    def failures(self) -> dict[Component, int]:
        """Failed calls since the start, by component; for a registered check, the seconds in which it failed."""
        return {component: state.failures for component, state in self._states.items()}
