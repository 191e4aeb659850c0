"""The broadcaster: which ending a broadcast has, from its claim to its last delivery. In virtual time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast

import pytest
from msgspec.structs import replace

from gatecast import Broadcast, decode
from tests.pipeline_doubles import FakeProgress, FakeQueue, FakeTable, Pipeline, claim, ids, lease, now, place, reasons
from tests.simulation import EPOCH, run
from worker.decisions.checkpoint import Checkpoint
from worker.decisions.claims import NotClaimed
from worker.observe.damaged_items import DamagedItems
from worker.pipeline.broadcaster import MAX_RECEIVES_WITHOUT_PROGRESS, Broadcaster, Ending
from worker.pipeline.completions import Completions
from worker.pipeline.lease import Lease, LeaseState
from worker.pipeline.room_settings import RoomSettingsCache
from worker.ports import Claim, DamagedProgress, MemberTable

TO_ROOM = Broadcast(id="one", room="room", data="x")
EXHAUSTED = claim(receives_without_progress=MAX_RECEIVES_WITHOUT_PROGRESS + 1)


class FakeCompletions:
    def __init__(self) -> None:
        self.added: list[Claim] = []

    async def add(self, claim: Claim) -> None:
        self.added.append(claim)


class BroadcasterFixture:
    """A broadcaster whose claims have these results; every delivery succeeds."""

    def __init__(
        self, *results: Claim | NotClaimed | Exception, members: int = 3, shards: int = 1, dead_letters: bool = True
    ) -> None:
        self.dead_letters = FakeQueue(url="http://queue/dead-letters")
        self.progress = FakeProgress(*results)
        self.table = FakeTable(*ids(members), shards=shards)
        self.pipeline = Pipeline(
            self.table, self.progress, delivers=True, dead_letters=self.dead_letters if dead_letters else None
        )
        self.completions = FakeCompletions()
        self.damaged = {"progress": 0}

    def end(self, broadcast: Broadcast = TO_ROOM, held: Lease | None = None) -> Ending:
        """Run the broadcast to its end."""
        return self.run_script(lambda broadcaster: broadcaster.run(broadcast, held or lease(), place()))

    def run_script(self, script: Callable[[Broadcaster], Awaitable[Ending]]) -> Ending:
        endings: list[Ending] = []

        async def simulation() -> None:
            broadcaster = Broadcaster(
                self.pipeline.services,
                RoomSettingsCache(cast(MemberTable, self.table), now),
                cast(Completions, self.completions),
                DamagedItems(self.damaged),
            )
            endings.append(await script(broadcaster))
            assert not broadcaster.running()

        run(simulation())
        return endings[0]


def test_a_claimed_broadcast_is_delivered_and_recorded_as_completed() -> None:
    fixture = BroadcasterFixture(claim(), members=250)
    assert fixture.end() is Ending.COMPLETED
    assert fixture.completions.added == [claim()]
    assert not fixture.dead_letters.sent


@pytest.mark.parametrize(
    ("state", "expected"), [(LeaseState.ENDING, Ending.RELEASED), (LeaseState.LOST, Ending.ABANDONED)]
)
def test_without_a_lease_nothing_is_claimed(state: LeaseState, expected: Ending) -> None:
    fixture, held = BroadcasterFixture(), lease()
    held.transition(state)
    assert fixture.end(held=held) is expected
    assert not fixture.progress.claimants


@pytest.mark.parametrize(("seconds", "expected"), [(0, Ending.EXPIRED), (1, Ending.COMPLETED)])
def test_an_expired_broadcast_is_not_claimed(seconds: int, expected: Ending) -> None:
    fixture = BroadcasterFixture(claim())
    assert fixture.end(replace(TO_ROOM, expires_at_ms=int(EPOCH + seconds) * 1000)) is expected
    assert bool(fixture.progress.claimants) == bool(seconds)


@pytest.mark.parametrize(
    ("result", "expected"),
    [(NotClaimed.COMPLETED, Ending.DUPLICATE), (NotClaimed.SUPERSEDED, Ending.ABANDONED)],
)
def test_a_broadcast_that_cannot_be_claimed_is_not_delivered(result: NotClaimed, expected: Ending) -> None:
    fixture = BroadcasterFixture(result)
    assert fixture.end() is expected
    assert not fixture.completions.added


def test_a_claim_held_by_another_message_is_requested_a_second_time_after_a_moment() -> None:
    assert BroadcasterFixture(NotClaimed.HELD, NotClaimed.HELD).end() is Ending.HELD
    assert BroadcasterFixture(NotClaimed.HELD, NotClaimed.COMPLETED).end() is Ending.DUPLICATE


def test_both_requests_for_a_claim_are_made_by_the_same_claimant() -> None:
    """Otherwise a claim whose response was lost would count as held by another worker."""
    fixture = BroadcasterFixture(NotClaimed.HELD, claim())
    assert fixture.end() is Ending.COMPLETED
    assert len({claimant.claim_id for claimant in fixture.progress.claimants}) == 1


def test_a_room_with_several_shards_is_split_into_one_part_per_shard() -> None:
    fixture = BroadcasterFixture(claim(), shards=3)
    assert fixture.end() is Ending.SPLIT
    parts = [decode(entry["MessageBody"]) for entry in fixture.pipeline.queue.sent]
    assert [part.shard for part in parts] == [0, 1, 2]
    assert {(part.id, part.room) for part in parts} == {("one", "room")}
    assert fixture.completions.added == [claim()]


def test_a_broadcast_that_has_begun_is_not_split() -> None:
    """Its checkpoint names members of the first shard; parts would start from the beginning."""
    resumed = claim(start=Checkpoint(cursor="c0000="))
    fixture = BroadcasterFixture(resumed, shards=3)
    assert fixture.end() is Ending.COMPLETED
    assert not fixture.pipeline.queue.sent
    assert fixture.table.pages_read[-1] == "c0000="


def test_a_part_is_delivered_without_reading_the_settings() -> None:
    fixture = BroadcasterFixture(claim(), shards=3)
    assert fixture.end(Broadcast(id="one", room="room", data="x", shard=0, part="s0")) is Ending.COMPLETED
    assert not fixture.table.settings_read
    assert not fixture.pipeline.queue.sent


def test_a_broadcast_without_progress_is_given_up_as_a_dead_letter() -> None:
    fixture = BroadcasterFixture(EXHAUSTED)
    assert fixture.end() is Ending.GIVEN_UP
    assert reasons(fixture.dead_letters) == ["receives"]
    assert decode(fixture.dead_letters.sent[0]["MessageBody"]).id == "one"
    assert fixture.progress.released == 1, "the dead letter can be claimed when it is redriven"


def test_a_broadcast_taken_over_meanwhile_is_not_given_up() -> None:
    fixture = BroadcasterFixture(EXHAUSTED)
    fixture.progress.held = False
    assert fixture.end() is Ending.ABANDONED
    assert not fixture.dead_letters.sent


def test_without_a_dead_letter_queue_a_broadcast_is_never_given_up() -> None:
    assert BroadcasterFixture(EXHAUSTED, dead_letters=False).end() is Ending.COMPLETED


def test_a_progress_item_counts_as_damaged_only_after_three_reads() -> None:
    damaged = DamagedProgress("broadcast#room one")
    assert BroadcasterFixture(damaged, damaged, claim()).end() is Ending.COMPLETED
    fixture = BroadcasterFixture(damaged, damaged, damaged)
    assert fixture.end() is Ending.GIVEN_UP
    assert reasons(fixture.dead_letters) == ["damaged"]
    assert fixture.progress.deleted == 1
    assert fixture.damaged == {"progress": 1}


def test_without_a_dead_letter_queue_a_damaged_broadcast_starts_again() -> None:
    damaged = DamagedProgress("broadcast#room one")
    fixture = BroadcasterFixture(damaged, damaged, damaged, dead_letters=False)
    assert fixture.end() is Ending.RELEASED
    assert fixture.progress.deleted == 1


def test_a_broadcast_that_stops_is_released_and_one_that_loses_its_lease_is_abandoned() -> None:
    for state, expected in ((LeaseState.ENDING, Ending.RELEASED), (LeaseState.LOST, Ending.ABANDONED)):
        fixture, held = BroadcasterFixture(claim()), lease()
        fixture.pipeline.engine.delivers = False

        async def script(
            broadcaster: Broadcaster,
            held: Lease = held,
            state: LeaseState = state,
            fixture: BroadcasterFixture = fixture,
        ) -> Ending:
            running = asyncio.create_task(broadcaster.run(TO_ROOM, held, place()))
            await asyncio.sleep(1)
            [shown] = broadcaster.running()
            assert (shown["id"], shown["in_flight"]) == ("one", 3)
            held.transition(state)
            for each in ids(2):
                fixture.pipeline.engine.deliver(each)
            fixture.pipeline.engine.fail("c0002=", 1)
            return await running

        assert fixture.run_script(script) is expected
        assert not fixture.completions.added


def test_running_broadcasts_are_shown_with_their_counts() -> None:
    fixture = BroadcasterFixture(claim(), members=3)
    fixture.pipeline.engine.delivers = False
    found: list[dict[str, object]] = []

    async def script(broadcaster: Broadcaster) -> Ending:
        running = asyncio.create_task(broadcaster.run(TO_ROOM, lease(), place()))
        await asyncio.sleep(2)
        fixture.pipeline.engine.deliver("c0000=")
        found.extend(broadcaster.running())
        for each in ids(3)[1:]:
            fixture.pipeline.engine.deliver(each)
        return await running

    assert fixture.run_script(script) is Ending.COMPLETED
    assert found[0]["delivered"] == 1
    assert found[0]["in_flight"] == 2
    assert found[0]["target"] == "room"
    assert found[0]["all_read"]
