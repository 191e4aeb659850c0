"""Errands: the engine's own requests besides deliveries, which close connections or post references.

A *reference* is a post to a made-up connection id, which reaches no client. API Gateway returns 410 for it, unless the
account is throttled (429) or the endpoint, the credentials or the permissions are wrong. So its response distinguishes
the account's throttling from one client's full buffer, and a wrong endpoint from one wrong connection id. References
are sent only while one of these is undecided and no other post decides it.

A connection is *closed* with retries: at once if its client does not read, so that deliveries stop waiting for it, or
paced if that is not urgent. Paced closings get a small share of the rate and a few of the pool's connections, so that
however many there are and however slowly the endpoint responds to them, deliveries do not wait. While the endpoint
fails for all they wait.
"""

import heapq
import itertools
import math
import random
import secrets
from base64 import b64encode
from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec
import structlog

from worker.decisions.backoff import ATTEMPTS_BEFORE_GIVING_UP, backoff_seconds
from worker.decisions.endpoint_health import EndpointHealth
from worker.decisions.rate import RateController
from worker.decisions.stall import StalledConnection
from worker.delivery.fanout import Delivery
from worker.delivery.slow_clients import SlowClients

log = structlog.get_logger()

REFERENCES_PER_SECOND: Final = 20.0
_REFERENCES_SHARE: Final = 0.02
"""References as a share of the rate limit."""
PACED_SHARE: Final = 0.03
"""Requests of paced closings as a share of the rate limit."""
MAX_PACED_IN_FLIGHT: Final = 8
_PROOF_SECONDS: Final = 1.0
_GONE: Final = 410
_NOT_FOUND: Final = 404
_THROTTLED: Final = 429
_SERVER_ERROR: Final = 500
_OK: Final = 200
_OK_END: Final = 300

OnEnd = Callable[[int, float, object], None]
"""Called with the status (0 without a response), the time in monotonic seconds, and a description of the response for
operators, in case that it is a failure: a text or a FailedResponse."""


class Errand(msgspec.Struct, eq=False):
    """One request."""

    method: str
    connection_id: str
    payload: bytes
    on_end: OnEnd


class Closing(msgspec.Struct, eq=False):
    """A connection to close. `farewell`, unless it is empty, is posted to it before.

    `on_end` is called once, with the last response: `has_ended` distinguishes success from failure.
    """

    connection_id: str
    on_end: OnEnd
    farewell: bytes = b""
    paced: bool = False
    """Whether it may take its time."""
    attempts: int = 0
    """Requests that have been sent for the farewell, or after that for the closing itself."""


def has_ended(status: int) -> bool:
    """Whether a connection no longer exists after this response to a request that closes it."""
    return _OK <= status < _OK_END or status in (_GONE, _NOT_FOUND)


class Errands:
    """The queue of errands. `slow` and `rate` determine whether references are needed; `slow` is set by the engine."""

    def __init__(self, *, rate: RateController, endpoint: EndpointHealth) -> None:
        self.references = 0
        """The number of references sent since the start."""
        self.slow: SlowClients | None = None
        self._rate = rate
        self._endpoint = endpoint
        self._urgent: list[tuple[float, int, Closing]] = []
        self._paced: list[tuple[float, int, Closing]] = []
        self._paced_at = -math.inf
        """When the next paced request may be sent."""
        self._paced_in_flight = 0
        self._sequence = itertools.count()
        self._checked_at = -math.inf
        self._counted = 0
        self._proof_at = -math.inf

    def close_slow_client(self, record: StalledConnection[Delivery]) -> None:
        """Close the record's connection as soon as possible, with retries. `SlowClients.closed` receives the result."""
        self.close(Closing(record.connection_id, partial(self._slow_client_ended, record)))

    def close(self, closing: Closing, at: float = -math.inf) -> None:
        """Close a connection, from the time `at` on. Paced ones are closed in the order of these times."""
        heapq.heappush(self._paced if closing.paced else self._urgent, (at, next(self._sequence), closing))

    def due_at(self) -> float:
        """When the next closing is due; infinity if there is none that may be sent."""
        return min(self._urgent[0][0] if self._urgent else math.inf, self._paced_due_at())

    def _paced_due_at(self) -> float:
        if not self._paced or self._paced_in_flight >= MAX_PACED_IN_FLIGHT or self._endpoint.holding:
            return math.inf
        return max(self._paced[0][0], self._paced_at)

    def next(self, now: float) -> Errand | None:
        """The next errand to send now; None if there is none."""
        if self._urgent and self._urgent[0][0] <= now:
            return self._closing(heapq.heappop(self._urgent)[2])
        if self._endpoint.needs_proof and now - self._proof_at >= _PROOF_SECONDS:
            self._proof_at = now
            return self._reference(proof=True)
        if now - self._checked_at >= 1 / min(REFERENCES_PER_SECOND, max(1.0, _REFERENCES_SHARE * self._rate.limit)):
            self._checked_at = now
            if self._needs_reference():
                return self._reference(proof=False)
        if self._paced_due_at() <= now:
            self._paced_at = max(self._paced_at + 1 / (PACED_SHARE * self._rate.limit), now)
            self._paced_in_flight += 1
            return self._closing(heapq.heappop(self._paced)[2])
        return None

    def _needs_reference(self) -> bool:
        """Whether something is undecided and no post has helped to decide it since the last check."""
        assert self.slow is not None  # noqa: S101 - set by the engine
        references = self.slow.references
        counted, self._counted = self._counted, references.passed + references.throttled
        return (self.slow.undecided or self._rate.needs_reference) and counted == self._counted

    def _reference(self, *, proof: bool) -> Errand:
        self.references += 1
        made_up = b64encode(secrets.token_bytes(11)).decode()

        def on_end(status: int, now: float, failure: object) -> None:
            assert self.slow is not None  # noqa: S101
            if status == _THROTTLED:
                self._rate.throttled(retry=False)
                self.slow.references.throttled += 1
            elif 0 < status < _SERVER_ERROR:
                self._rate.passed(1)
                self.slow.references.passed += 1
            if status == _GONE:
                self._endpoint.proved(now)
            elif proof and status != _THROTTLED and not _OK <= status < _OK_END:  # some emulators accept any id
                self._endpoint.failed(failure, now, first_attempt=True, rejected=0 < status < _SERVER_ERROR)

        return Errand("POST", made_up, b"{}", on_end)

    def _closing(self, closing: Closing) -> Errand:
        """The next request for this closing."""
        closing.attempts += 1
        on_end = partial(self._request_ended, closing)
        if closing.farewell:
            return Errand("POST", closing.connection_id, closing.farewell, on_end)
        return Errand("DELETE", closing.connection_id, b"", on_end)

    def _request_ended(self, closing: Closing, status: int, now: float, failure: object) -> None:
        if closing.paced:
            self._paced_in_flight -= 1
        is_retriable = status in (0, _THROTTLED) or status >= _SERVER_ERROR
        if is_retriable and closing.attempts < ATTEMPTS_BEFORE_GIVING_UP:
            self.close(closing, now + backoff_seconds(closing.attempts, random.random()))
        elif closing.farewell and status != _GONE:  # also if it failed: it is closed all the same
            closing.farewell = b""
            closing.attempts = 0
            self.close(closing)
        else:
            closing.on_end(status, now, failure)

    def _slow_client_ended(self, record: StalledConnection[Delivery], status: int, now: float, failure: object) -> None:
        assert self.slow is not None  # noqa: S101
        succeeded = has_ended(status)
        if succeeded:
            log.info("slow_client.closed", connection=record.connection_id)
        else:
            log.error("slow_client.not_closed", connection=record.connection_id, status=status, reason=str(failure))
        self.slow.closed(record, now, succeeded=succeeded)
