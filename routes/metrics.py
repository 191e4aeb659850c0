"""The routes' metrics, for CloudWatch: one embedded-metrics line an invocation, which Lambda's log carries there.

Namespace `Gatecast`, dimensions `service` and `route` (and never a room, a user or a connection). They cost no call;
POWERTOOLS_METRICS_DISABLED=true leaves them out. How many connections are open is ConnectionsOpened less
ConnectionsClosed, summed up: an estimate, for `$disconnect` may never come.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from aws_lambda_powertools.metrics import EphemeralMetrics, MetricUnit

_NAMESPACE: Final = "Gatecast"
_SERVICE: Final = "gatecast-routes"
"""Unless POWERTOOLS_SERVICE_NAME says another name."""
_DONE: Final = {"$connect": "ConnectionsOpened", "$disconnect": "ConnectionsClosed", "publish": "MessagesPublished"}
"""What an invocation of these routes counts when it did what was asked."""


class Invocation:
    """How one invocation ends: done unless something else is said."""

    def __init__(self) -> None:
        self._rejected = False
        self._failed = False

    def rejected(self) -> None:
        """What the client asked for is not to be had."""
        self._rejected = True

    def failed(self) -> None:
        """We could not do what should have been done."""
        self._failed = True

    def counts(self, route: str) -> dict[str, int]:
        done = not (self._rejected or self._failed)
        counts = {"Rejected": int(self._rejected), "Errors": int(self._failed)}
        if route in _DONE:
            counts[_DONE[route]] = int(done)
        return counts


@contextmanager
def measured(route: str) -> Iterator[Invocation]:
    """Counts one invocation of this route and how long it took. `route` is one of ours, never what a client named."""
    started_at = time.monotonic()
    invocation = Invocation()
    yield invocation
    metrics = EphemeralMetrics(namespace=_NAMESPACE, service=os.environ.get("POWERTOOLS_SERVICE_NAME") or _SERVICE)
    metrics.add_dimension("route", route)
    for name, count in invocation.counts(route).items():
        metrics.add_metric(name, MetricUnit.Count, count)
    metrics.add_metric("Latency", MetricUnit.Milliseconds, round((time.monotonic() - started_at) * 1000, 3))
    metrics.flush_metrics()
