"""Errands: the engine's own requests besides deliveries, which close connections or post references.

A *reference* is a post to a made-up connection id, which reaches no client. API Gateway returns 410 for it, unless the
account is throttled (429) or the endpoint, the credentials or the permissions are wrong. So its response distinguishes
the account's throttling from one client's full buffer, and a wrong endpoint from one wrong connection id. References
are sent only while one of these is undecided and no other post decides it.
"""

import heapq
import itertools
import math
import random
import secrets
from base64 import b64encode
from collections.abc import Callable
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
_PROOF_SECONDS: Final = 1.0
_GONE: Final = 410
_NOT_FOUND: Final = 404
_THROTTLED: Final = 429
_SERVER_ERROR: Final = 500
_OK: Final = 200
_OK_END: Final = 300


class Errand(msgspec.Struct, eq=False):
    """One request.

    `on_end` is called with the status (0 without a response), the time in monotonic seconds, and a description of the
    response for operators, in case that it is a failure: a text or a FailedResponse.
    """

    method: str
    connection_id: str
    payload: bytes
    on_end: Callable[[int, float, object], None]


class Errands:
    """The queue of errands. `slow` and `rate` determine whether references are needed; `slow` is set by the engine."""

    def __init__(self, *, rate: RateController, endpoint: EndpointHealth) -> None:
        self.references = 0
        """The number of references sent since the start."""
        self.slow: SlowClients | None = None
        self._rate = rate
        self._endpoint = endpoint
        self._closings: list[tuple[float, int, int, StalledConnection[Delivery]]] = []
        self._sequence = itertools.count()
        self._checked_at = -math.inf
        self._counted = 0
        self._proof_at = -math.inf

    def close(self, record: StalledConnection[Delivery]) -> None:
        """Close the record's connection as soon as possible, with retries. `SlowClients.closed` receives the result."""
        self._close_at(record, -math.inf, attempts=0)

    def due_at(self) -> float:
        """When the next connection is due to be closed; infinity if none is."""
        return self._closings[0][0] if self._closings else math.inf

    def next(self, now: float) -> Errand | None:
        """The next errand to send now; None if there is none."""
        if self._closings and self._closings[0][0] <= now:
            _, _, attempts, record = heapq.heappop(self._closings)
            return self._closing(record, attempts + 1)
        if self._endpoint.needs_proof and now - self._proof_at >= _PROOF_SECONDS:
            self._proof_at = now
            return self._reference(proof=True)
        if now - self._checked_at >= 1 / min(REFERENCES_PER_SECOND, max(1.0, _REFERENCES_SHARE * self._rate.limit)):
            self._checked_at = now
            if self._needs_reference():
                return self._reference(proof=False)
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

    def _close_at(self, record: StalledConnection[Delivery], at: float, *, attempts: int) -> None:
        heapq.heappush(self._closings, (at, next(self._sequence), attempts, record))

    def _closing(self, record: StalledConnection[Delivery], attempts: int) -> Errand:
        def on_end(status: int, now: float, failure: object) -> None:
            assert self.slow is not None  # noqa: S101
            if 0 < status < _OK_END or status in (_GONE, _NOT_FOUND):
                log.info("slow_client.closed", connection=record.connection_id)
                self.slow.closed(record, now, succeeded=True)
            elif attempts < ATTEMPTS_BEFORE_GIVING_UP and (status in (0, _THROTTLED) or status >= _SERVER_ERROR):
                self._close_at(record, now + backoff_seconds(attempts, random.random()), attempts=attempts)
            else:
                log.error("slow_client.not_closed", connection=record.connection_id, status=status, reason=str(failure))
                self.slow.closed(record, now, succeeded=False)

        return Errand("DELETE", record.connection_id, b"", on_end)
