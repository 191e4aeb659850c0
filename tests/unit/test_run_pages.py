"""What a broadcast's pages are used for besides deliveries: expired members, counts, the limit of presence."""

import asyncio
import math

import pytest

from gatecast import Broadcast
from gatecast.broadcast import Presence
from gatecast.frames import V2
from tests.pipeline_doubles import FakeProgress, FakeTable, Pipeline, claim, ids, lease, place
from tests.simulation import run
from worker.decisions.checkpoint import Checkpoint
from worker.decisions.outcome import Outcome
from worker.pipeline.run import Run

TO_ROOM = Broadcast(id="one", room="room", data="x")
TO_CONNECTIONS = Broadcast(id="one", connections=("a=", "b="), data="x")
CHANGE = Broadcast(id="%presence/1", room="room", v=2, presence=Presence(departed=("ann",)))


def deliver(
    pipeline: Pipeline,
    broadcast: Broadcast = TO_ROOM,
    *,
    start: Checkpoint | None = None,
    presence_frame: bytes | None = None,
    max_members: float = math.inf,
) -> Run:
    """Run the broadcast to its end."""
    runs: list[Run] = []

    async def simulation() -> None:
        runs.append(
            Run(
                pipeline.services,
                broadcast,
                lease(),
                claim=claim(start=start),
                claimed_at=0.0,
                place=place(),
                order=0,
                presence_frame=presence_frame,
                max_members=max_members,
            )
        )
        assert await asyncio.wait_for(runs[0].deliver(), 60)

    run(simulation())
    return runs[0]


def pipeline(members: int, *, expired: tuple[str, ...] = ()) -> Pipeline:
    table = FakeTable(*ids(members))
    table.expired = list(expired)
    return Pipeline(table, FakeProgress(), delivers=True)


def test_expired_members_are_passed_on_and_not_posted_to() -> None:
    doubles = pipeline(3, expired=("x=", "y="))
    fanout = deliver(doubles).fanout
    assert fanout.counts[Outcome.DELIVERED] == 3
    assert doubles.closer.offered == ["x=", "y="]


def test_expired_members_are_passed_on_also_if_a_broadcast_is_resumed() -> None:
    doubles = pipeline(3, expired=("x=",))
    deliver(doubles, start=Checkpoint("c0001=", ()))
    assert doubles.closer.offered == ["x="]


def test_all_members_are_counted_at_the_end_of_the_last_page() -> None:
    doubles = pipeline(250, expired=("x=",))
    deliver(doubles)
    assert doubles.counts.counted == [("room", 0, 250)]


def test_members_are_not_counted_if_some_were_read_before_or_are_named() -> None:
    doubles = pipeline(250)
    deliver(doubles, start=Checkpoint("c0001=", ()))
    deliver(doubles, TO_CONNECTIONS)
    assert doubles.counts.counted == []


@pytest.mark.parametrize(("members", "limit", "delivered"), [(3, 3, 3), (4, 3, 0), (99, 3, 0), (250, 249, 200)])
def test_of_a_room_with_too_many_members_only_those_before_the_page_that_shows_it_are_delivered_to(
    members: int, limit: int, delivered: int
) -> None:
    doubles = pipeline(members)
    doubles.table.frames = dict.fromkeys(ids(members), V2)
    fanout = deliver(doubles, CHANGE, presence_frame=b"{}", max_members=limit).fanout
    assert fanout.counts[Outcome.DELIVERED] == delivered
    assert fanout.settled
    assert doubles.counts.counted == [("room", 0, members)]
