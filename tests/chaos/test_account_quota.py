"""An account quota of a fifth of the workers' ceiling: everything is delivered, with few 429s and little unused quota.

Two workers share the quota without coordination. Ratios are asserted at full scale, where there is time for the rate
to settle; otherwise they are only recorded.
"""

import asyncio
import bisect
import itertools
import uuid
from typing import NamedTuple

import pytest

from gatecast import Broadcast
from tests.chaos.endpoint_model import Account, Slice
from tests.chaos.harness import Harness, Room
from tests.chaos.results import RunResult, record
from tests.chaos.scale import FULL
from tests.worker_process import WorkerProcess

OFFERED = 5_000
GRANTED = OFFERED // 5
BROADCASTS = 3 if FULL else 1
SETTLING_SECONDS = 10.0 if FULL else 1.0
SETTINGS = {
    "GATECAST_MAX_POSTS_PER_SECOND": str(OFFERED),
    "GATECAST_MAX_BROADCASTS": str(BROADCASTS),  # so that every worker receives its share
}
TIMEOUT_SECONDS = 240 if FULL else 90


class Settled(NamedTuple):
    """Responses after the rate had settled, while there was more to deliver than the quota allows."""

    seconds: float
    delivered: int
    throttled: int

    @classmethod
    def from_slices(cls, slices: list[Slice]) -> "Settled":
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
        """The share of the account's quota that deliveries used."""
        return self.delivered / (self.seconds * GRANTED)


async def deliver_throttled(harness: Harness, room: Room, workers: int) -> list[WorkerProcess]:
    """Deliver the broadcasts with this many workers under the account's quota."""
    await harness.endpoint.configure(account=Account(GRANTED, GRANTED // 2), latency_seconds=0.02)
    running = [harness.launch(SETTINGS) for _ in range(workers)]
    await asyncio.gather(*(worker.ready() for worker in running))
    for number in range(BROADCASTS * workers):
        harness.publish(Broadcast(id=uuid.uuid4().hex, room=room.name, data=str(number)))
    await harness.wait_until_drained(seconds=TIMEOUT_SECONDS)
    return running


@pytest.mark.parametrize("workers", [1, 2] if FULL else [2])
async def test_throttled_to_a_fifth_every_member_is_reached_at_the_account_quota(
    harness: Harness, crowd: Room, workers: int
) -> None:
    running = await deliver_throttled(harness, crowd, workers)

    tallies = [await harness.tally(str(number), crowd.ids) for number in range(BROADCASTS * workers)]
    settled = Settled.from_slices(await harness.endpoint.slices())
    granted = [await worker.metric('gatecast_posts_total{status="200"}') for worker in running]
    shares = [each / sum(granted) for each in granted]
    letters = harness.dead_letter_depth()
    missing, repeated = sum(len(tally.missing) for tally in tallies), sum(tally.repeated for tally in tallies)
    record(
        RunResult(
            run=f"account throttled to a fifth, {workers} worker{'s' * (workers > 1)}",
            members=len(crowd.ids) * len(tallies),
            missing=missing,
            repeated=repeated,
            allowed=0,
            dead_letters=letters,
            seconds=harness.elapsed_seconds,
            notes=f"settled: {settled.throttled_share:.1%} of posts returned 429, "
            f"{settled.used_share:.0%} of the quota used"
            + (f", shares {' and '.join(f'{share:.0%}' for share in shares)}" if workers > 1 else ""),
        )
    )
    assert missing == repeated == letters == 0
    if FULL:
        assert settled.throttled_share < 0.05
        assert settled.used_share >= 0.9
        assert workers == 1 or all(0.35 <= share <= 0.65 for share in shares)
