"""Remainders: slow members of a broadcast, sent as a broadcast of their own, so that they hold up no others.

Members stay unsettled until the queue has stored their remainder, so a worker that takes the broadcast over in between
posts to them as well, or sends the remainder again if the broadcast ends in a receipt (`checkpoints`).
"""

from typing import Final

import structlog
from msgspec import UNSET

from gatecast.broadcast import Broadcast
from gatecast.publisher import is_fifo, queue_message
from worker.decisions.parts import REMAINDER_PREFIX, can_name, fitting
from worker.decisions.stall import PriorRejections
from worker.delivery.fanout import MAX_WAITING, Delivery, Fanout
from worker.pipeline.checkpoints import Checkpoints
from worker.pipeline.services import Services
from worker.ports import MessageRejected

log = structlog.get_logger()

_MIN_SECONDS: Final = 15
_MAX_SECONDS: Final = 300
_MAX_CARRIED_SECONDS: Final = 3600.0


class Remainders:
    """The remainders of one broadcast in progress."""

    def __init__(self, services: Services, fanout: Fanout, checkpoints: Checkpoints) -> None:
        self._services = services
        self._fanout = fanout
        self._checkpoints = checkpoints
        # A FIFO queue neither delays single messages nor lets them overtake, so there are no remainders on one.
        self._possible = not is_fifo(services.sender.url)

    def take(self, *, parked: bool) -> list[Delivery]:
        """Slow deliveries for `hand_off`: those that an earlier worker was sending, or as many as are too many."""
        fanout = self._fanout
        if fanout.stopped:
            return []
        handed_off, fanout.handed_off = fanout.handed_off, []
        if not self._possible:
            for delivery in handed_off:  # the broadcast was on a standard queue before
                self._services.engine.retry_later(delivery)
            return []
        if handed_off:
            return handed_off
        too_many = fanout.waiting >= MAX_WAITING or (fanout.only_waiting and not parked)
        if not too_many:
            return []
        return [delivery for delivery in fanout.slow(MAX_WAITING) if can_name(delivery.connection_id)]

    async def hand_off(self, slow: list[Delivery]) -> None:
        """Send these as a broadcast of their own, with a delay that grows each time."""
        fanout, services, checkpoints = self._fanout, self._services, self._checkpoints
        tried = self._retry_history(slow)
        for delivery in slow:  # the engine ignores them from here on, but checkpoints still contain them
            if delivery.waiting:
                fanout.stop_waiting(delivery)
        seconds = services.wall_clock() - tried[1] / 1000
        delay = round(min(max(seconds, _MIN_SECONDS), _MAX_SECONDS))
        waiting = {delivery.connection_id: delivery for delivery in slow}
        for remainder in fitting(fanout.broadcast, list(waiting), REMAINDER_PREFIX, tried):
            if not await checkpoints.expect(remainder):
                return
            try:
                await services.sender.send(queue_message(remainder, fifo=False), delay_seconds=delay)
            except MessageRejected as rejected:
                log.error("remainder.rejected", id=fanout.broadcast.id, code=rejected.code)  # noqa: TRY400
                await checkpoints.forget(remainder)
                self._possible = False
                for delivery in waiting.values():
                    services.engine.retry_later(delivery)
                return
            fanout.hand_off([waiting.pop(each) for each in remainder.connections or ()])
            checkpoints.sent()
            services.metrics.remainders += 1

    def _retry_history(self, slow: list[Delivery]) -> tuple[int, int, float]:
        """What holds for all of them: rejected probes, since when (milliseconds since the epoch), and the evidence."""
        now = self._services.clock()
        records = [delivery.stalled for delivery in slow]
        stalled = [record for record in records if record is not None]
        since = max((record.since for record in stalled), default=now)
        since_ms = int((self._services.wall_clock() - (now - since)) * 1000)
        if len(stalled) < len(slow):
            return 0, since_ms, 0.0
        return min(each.rejected for each in stalled), since_ms, min(each.evidence for each in stalled)


def prior_rejections(broadcast: Broadcast, services: Services) -> PriorRejections | None:
    """The retry history that an earlier worker passed on for all of the connections, on this worker's clock."""
    if broadcast.tried is UNSET or not broadcast.tried[0]:
        return None
    probes, since_ms, evidence = broadcast.tried
    seconds = min(max(0.0, services.wall_clock() - since_ms / 1000), _MAX_CARRIED_SECONDS)
    return PriorRejections(probes, services.clock() - seconds, evidence)
