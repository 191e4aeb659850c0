"""The account's quota at a fifth of what is offered: all is delivered, few posts are refused, little is wasted.

Two workers without a coordinator share it. Ratios are asserted where there is time to settle; else only recorded.
"""

import asyncio
import bisect
import itertools
import uuid
from typing import NamedTuple

import pytest

from gatecast import Broadcast
from tests.chaos.arena import Arena, Room
from tests.chaos.counting import Account, Slice
from tests.chaos.results import Figures, record
from tests.chaos.sizes import FULL
from tests.worker_process import WorkerProcess

OFFERED = 5_000
GRANTED = OFFERED // 5
BROADCASTS = 3 if FULL else 1
SETTLING_SECONDS = 10.0 if FULL else 1.0
SETTINGS = {
    "GATECAST_MAX_POSTS_PER_SECOND": str(OFFERED),
    "GATECAST_MAX_BROADCASTS": str(BROADCASTS),  # so that every worker gets its part
}
PATIENCE_SECONDS = 240 if FULL else 90


class Settled(NamedTuple):
    """What the endpoint saw once the rate had settled, as long as there was more to deliver than was granted."""

    seconds: float
    delivered: int
    throttled: int

    @classmethod
    def of(cls, slices: list[Slice]) -> "Settled":
        begun = slices[0].at_seconds + SETTLING_SECONDS
        so_far = list(itertools.accumulate(each.delivered for each in slices))
        ended = slices[bisect.bisect(so_far, 0.95 * so_far[-1])].at_seconds
        kept = [each for each in slices if begun <= each.at_seconds < ended]
        return cls(
            max(ended - begun, 0.001), sum(each.delivered for each in kept), sum(each.throttled for each in kept)
        )

    @property
    def throttled_share(self) -> float:
        return self.throttled / max(1, self.throttled + self.delivered)

    @property
    def used_share(self) -> float:
        """Of what the account grants."""
        return self.delivered / (self.seconds * GRANTED)


async def throttled(arena: Arena, room: Room, workers: int) -> list[WorkerProcess]:
    """All broadcasts through all workers, until everybody has all of them."""
    await arena.endpoint.behave(account=Account(GRANTED, GRANTED // 2), latency_seconds=0.02)
    running = [arena.launch(SETTINGS) for _ in range(workers)]
    await asyncio.gather(*(worker.ready() for worker in running))
    for number in range(BROADCASTS * workers):
        arena.publish(Broadcast(id=uuid.uuid4().hex, room=room.name, data=str(number)))
    await arena.drained(seconds=PATIENCE_SECONDS)
    return running


@pytest.mark.parametrize("workers", [1, 2] if FULL else [2])
async def test_throttled_at_a_fifth_everybody_is_reached_at_the_pace_that_is_granted(
    arena: Arena, crowd: Room, workers: int
) -> None:
    running = await throttled(arena, crowd, workers)

    tallies = [await arena.tally(str(number), crowd.ids) for number in range(BROADCASTS * workers)]
    settled = Settled.of(await arena.endpoint.slices())
    granted = [await worker.metric('gatecast_posts_total{status="200"}') for worker in running]
    shares = [each / sum(granted) for each in granted]
    letters = arena.depth(arena.backend.queues.dead_letter_url)
    missing, repeated = sum(len(tally.missing) for tally in tallies), sum(tally.repeated for tally in tallies)
    record(
        Figures(
            run=f"account throttled to a fifth, {workers} worker{'s' * (workers > 1)}",
            members=len(crowd.ids) * len(tallies),
            missing=missing,
            repeated=repeated,
            allowed=0,
            dead_letters=letters,
            seconds=arena.seconds,
            notes=f"settled: {settled.throttled_share:.1%} answered 429, {settled.used_share:.0%} of the grants used"
            + (f", shares {' and '.join(f'{share:.0%}' for share in shares)}" if workers > 1 else ""),
        )
    )
    assert missing == repeated == letters == 0
    if FULL:
        assert settled.throttled_share < 0.05
        assert settled.used_share >= 0.9
        assert workers == 1 or all(0.35 <= share <= 0.65 for share in shares)
