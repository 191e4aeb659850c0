"""The broadcasts that this worker delivers at the moment: what they need together, and what people see of them."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from heapq import nsmallest
from typing import Final

from gatecast.broadcast import Broadcast
from gatecast.publisher import is_fifo
from worker.pipeline.presence import delay_seconds
from worker.pipeline.run import Run
from worker.pipeline.services import Services

_WAKE_SECONDS: Final = 0.25
_MAX_SHOWN: Final = 50


class ActiveRuns:
    """A run is active in a block of `including`."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._runs: set[Run] = set()
        self._cutting_short = False
        self._billed_units = 0
        """Of the runs that have ended."""

    @contextmanager
    def including(self, run: Run) -> Iterator[None]:
        if self._cutting_short:
            run.cut_short()
        self._runs.add(run)
        try:
            yield
        finally:
            self._runs.discard(run)
            self._billed_units += run.fanout.outcomes.billed_units

    async def wake_periodically(self) -> None:
        """Wake every run periodically, so that none needs a timer of its own. Runs until cancelled."""
        while True:
            await asyncio.sleep(_WAKE_SECONDS)
            for run in self._runs:
                run.wake()

    def cut_short(self) -> None:
        """Stop waiting for responses: there is only time to write the position of each broadcast."""
        self._cutting_short = True
        for run in self._runs:
            run.cut_short()

    @property
    def waiting(self) -> int:
        """The number of deliveries that wait for a retry."""
        return sum(run.fanout.waiting for run in self._runs)

    @property
    def billed_units(self) -> int:
        """The units for which API Gateway bills what this worker has posted since its start."""
        return self._billed_units + sum(run.fanout.outcomes.billed_units for run in self._runs)

    def shown(self) -> list[dict[str, object]]:
        """The broadcasts being delivered, for people to look at: the `_MAX_SHOWN` that have run longest."""
        now = self._services.clock()
        fanouts = (run.fanout for run in self._runs)
        return [
            {
                "id": fanout.broadcast.id,
                "part": fanout.broadcast.part,
                "target": "room" if fanout.broadcast.room else "connections",
                "age_seconds": round(age_seconds(fanout.broadcast, self._services), 3),
                "running_seconds": round(now - fanout.started_at, 3),
                **{str(outcome): count for outcome, count in fanout.counts.items()},
                "in_flight": fanout.in_flight,
                "waiting": fanout.waiting,
                "read_ahead": fanout.read_ahead,
                "all_read": fanout.exhausted,
            }
            for fanout in nsmallest(_MAX_SHOWN, fanouts, key=lambda fanout: fanout.started_at)
        ]


def age_seconds(broadcast: Broadcast, services: Services) -> float:
    """The time since the broadcast was published, or since the end of the delay that it was published with."""
    fifo = is_fifo(services.sender.url)
    due_at = int(broadcast.published_at_ms or 0) / 1000 + delay_seconds(broadcast, fifo=fifo)
    return max(0.0, services.wall_clock() - due_at)
