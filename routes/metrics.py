"""The routes' CloudWatch metrics: one line in the embedded metric format per invocation, written to Lambda's log.

Namespace `Gatecast`, dimensions `service` and `route` (never a room, a user or a connection). They need no API call;
POWERTOOLS_METRICS_DISABLED=true disables them. The number of open connections is the sum of ConnectionsOpened less the
sum of ConnectionsClosed: an estimate, because `$disconnect` is not guaranteed.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Protocol

import msgspec
from aws_lambda_powertools.metrics import EphemeralMetrics, MetricUnit

_NAMESPACE: Final = "Gatecast"
_SERVICE: Final = "gatecast-routes"
"""The default of POWERTOOLS_SERVICE_NAME."""
_SUCCESS_METRICS: Final = {
    "$connect": "ConnectionsOpened",
    "$disconnect": "ConnectionsClosed",
    "publish": "MessagesPublished",
}
"""The metric that a successful invocation of each of these routes increments."""


class Recovered(Protocol):
    """One room's part of a response with messages from its history."""

    @property
    def recovered(self) -> bool: ...
    @property
    def messages(self) -> Sequence[msgspec.Raw]: ...


class Invocation:
    """The result of one invocation: success unless `rejected` or `failed` is called."""

    def __init__(self) -> None:
        self._rejected = False
        self._failed = False

    def rejected(self) -> None:
        """Records that the request was rejected."""
        self._rejected = True

    def failed(self) -> None:
        """Records that the route or a dependency failed."""
        self._failed = True

    def counts(self, route: str) -> dict[str, int]:
        """The metrics' increments, by name."""
        succeeded = not (self._rejected or self._failed)
        counts = {"Rejected": int(self._rejected), "Errors": int(self._failed)}
        if route in _SUCCESS_METRICS:
            counts[_SUCCESS_METRICS[route]] = int(succeeded)
        return counts


@contextmanager
def record_invocation(route: str) -> Iterator[Invocation]:
    """Counts one invocation of a route and measures its duration. `route` is a route key, never a client's text."""
    started_at = time.monotonic()
    invocation = Invocation()
    yield invocation
    metrics = _metrics()
    metrics.add_dimension("route", route)
    for name, count in invocation.counts(route).items():
        metrics.add_metric(name, MetricUnit.Count, count)
    metrics.add_metric("Latency", MetricUnit.Milliseconds, round((time.monotonic() - started_at) * 1000, 3))
    metrics.flush_metrics()


def record_ignored_event() -> None:
    """Counts one event that is not API Gateway's."""
    _record("Ignored", 1)


def record_damaged_settings(attributes: int) -> None:
    """Counts the invalid attributes of one settings item that was read."""
    _record("DamagedSettings", attributes)


def record_unannounced_presence(events: int) -> None:
    """Counts joins and departures that could not be announced to their rooms."""
    _record("PresenceNotAnnounced", events)


def record_recoveries(recoveries: Sequence[Recovered]) -> None:
    """Counts what one request for histories returned, and the rooms in which messages are missing."""
    if not recoveries:
        return
    messages = [message for each in recoveries for message in each.messages]
    metrics = _metrics()
    metrics.add_metric("HistoryMessages", MetricUnit.Count, len(messages))
    metrics.add_metric("HistoryBytes", MetricUnit.Bytes, sum(len(bytes(message)) for message in messages))
    metrics.add_metric("NotRecovered", MetricUnit.Count, sum(not each.recovered for each in recoveries))
    metrics.flush_metrics()


def _record(name: str, count: int) -> None:
    """Without the dimension `route`: one more line than the invocation's own."""
    metrics = _metrics()
    metrics.add_metric(name, MetricUnit.Count, count)
    metrics.flush_metrics()


def _metrics() -> EphemeralMetrics:
    return EphemeralMetrics(namespace=_NAMESPACE, service=os.environ.get("POWERTOOLS_SERVICE_NAME") or _SERVICE)
