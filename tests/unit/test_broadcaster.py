"""The broadcaster: which ending a broadcast has, from its claim to its last delivery. In virtual time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from gatecast import Broadcast, decode
from gatecast.broadcast import Presence
from gatecast.frames import V2
from tests.pipeline_doubles import (
    FakeProgress,
    FakeQueue,
    FakeStream,
    FakeTable,
    Pipeline,
    claim,
    ids,
    lease,
    now,
    place,
    reasons,
    wall_clock,
)
from tests.simulation import EPOCH, run
from worker.decisions.checkpoint import Checkpoint
from worker.decisions.claims import Claimant, NotClaimed
from worker.decisions.history import Conflict
from worker.observe.damaged_items import DamagedItems
from worker.pipeline.broadcaster import MAX_RECEIVES_WITHOUT_PROGRESS, Broadcaster, Ending
from worker.pipeline.completions import Completions
from worker.pipeline.history import History
from worker.pipeline.lease import Lease, LeaseState
from worker.pipeline.presence import Announcement
from worker.pipeline.room_settings import RoomSettingsCache
from worker.ports import Append, Claim, DamagedProgress, DependencyError, EntryRejected, MemberTable

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
        self,
        *results: Claim | NotClaimed | Exception,
        members: int = 3,
        shards: int = 1,
        history_seconds: int | None = None,
        dead_letters: bool = True,
    ) -> None:
        self.dead_letters = FakeQueue(url="http://queue/dead-letters")
        self.progress = FakeProgress(*results)
        self.table = FakeTable(*ids(members), shards=shards)
        self.table.history_seconds = history_seconds
        self.pipeline = Pipeline(
            self.table, self.progress, delivers=True, dead_letters=self.dead_letters if dead_letters else None
        )
        self.completions = FakeCompletions()
        self.stream = FakeStream(at=7)
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
                History(
                    self.stream,
                    health=self.pipeline.health,
                    metrics=self.pipeline.metrics,
                    damaged=DamagedItems(self.damaged),
                    clock=now,
                    wall_clock=wall_clock,
                ),
                cast(Completions, self.completions),
                DamagedItems(self.damaged),
            )
            endings.append(await script(broadcaster))
            assert not broadcaster.active.shown()

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
    assert fixture.progress.resets == 1
    assert fixture.damaged == {"progress": 1}


def test_without_a_dead_letter_queue_a_damaged_broadcast_starts_again() -> None:
    damaged = DamagedProgress("broadcast#room one")
    fixture = BroadcasterFixture(damaged, damaged, damaged, dead_letters=False)
    assert fixture.end() is Ending.RELEASED
    assert fixture.progress.resets == 1


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
            [shown] = broadcaster.active.shown()
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
        found.extend(broadcaster.active.shown())
        for each in ids(3)[1:]:
            fixture.pipeline.engine.deliver(each)
        return await running

    assert fixture.run_script(script) is Ending.COMPLETED
    assert found[0]["delivered"] == 1
    assert found[0]["in_flight"] == 2
    assert found[0]["target"] == "room"
    assert found[0]["all_read"]


# Rooms with history


def test_members_are_read_after_the_message_has_been_written_to_the_history() -> None:
    fixture = BroadcasterFixture(claim(), history_seconds=60)
    pages_read_early = []
    append = fixture.stream.append

    async def recording(request: Append) -> Conflict | None:
        result = await append(request)
        pages_read_early.extend(fixture.table.pages_read)
        fixture.table.pages_read.clear()
        return result

    fixture.stream.append = recording  # type: ignore[method-assign]
    assert fixture.end() is Ending.COMPLETED
    assert fixture.stream.entries == [("one", 8)]
    assert pages_read_early == [""], "read before the settings were known; its members are not used"
    assert fixture.table.pages_read == [""]


def test_once_a_room_is_known_to_have_history_nothing_is_read_that_is_not_used() -> None:
    fixture = BroadcasterFixture(claim(), claim(), claim(), history_seconds=60)

    async def script(broadcaster: Broadcaster) -> Ending:
        for pause in (1, 60):  # after the longer one the settings have to be read again
            assert await broadcaster.run(TO_ROOM, lease(), place()) is Ending.COMPLETED
            await asyncio.sleep(pause)
        fixture.table.pages_read.clear()
        return await broadcaster.run(TO_ROOM, lease(), place())

    assert fixture.run_script(script) is Ending.COMPLETED
    assert fixture.table.pages_read == [""]
    assert [request.entries[0].offset for request in fixture.stream.appends] == [8, 9, 10]
    assert fixture.stream.heads_read == 1


def test_a_room_whose_history_has_been_switched_off_is_as_one_without() -> None:
    fixture = BroadcasterFixture(claim(), claim(), claim(), history_seconds=60)

    async def script(broadcaster: Broadcaster) -> Ending:
        await broadcaster.run(TO_ROOM, lease(), place())
        fixture.table.history_seconds = 0
        await asyncio.sleep(60)
        await broadcaster.run(TO_ROOM, lease(), place())
        await asyncio.sleep(60)
        fixture.table.pages_read.clear()
        await broadcaster.run(TO_ROOM, lease(), place())
        return Ending.COMPLETED

    fixture.run_script(script)
    assert len(fixture.stream.appends) == 1
    assert fixture.stream.skips == 1, "the first message without an offset leaves a hole"
    assert fixture.table.pages_read == [""]


def test_without_history_there_is_no_call_to_the_stream() -> None:
    fixture = BroadcasterFixture(claim())
    assert fixture.end() is Ending.COMPLETED
    assert not fixture.stream.appends
    assert not fixture.stream.heads_read
    assert not fixture.stream.skips
    assert fixture.table.pages_read == [""]


def test_an_offset_that_an_earlier_worker_assigned_is_kept_and_members_are_read_after_it() -> None:
    """Its message may have been written between the start of a read and the claim."""
    fixture = BroadcasterFixture(claim(offset=5), history_seconds=60)
    assert fixture.end() is Ending.COMPLETED
    assert not fixture.stream.appends
    assert fixture.table.pages_read == ["", ""]


def test_a_broadcast_that_began_without_an_offset_gets_none() -> None:
    fixture = BroadcasterFixture(claim(start=Checkpoint(cursor="c0000=")), history_seconds=60)
    assert fixture.end() is Ending.COMPLETED
    assert not fixture.stream.appends
    assert fixture.stream.skips == 1


@pytest.mark.parametrize(
    "broadcast",
    [replace(TO_ROOM, shard=0, part="s0", offset=5), replace(TO_ROOM, offset=5), replace(TO_ROOM, shard=0, part="s0")],
    ids=["part", "redriven", "part without an offset"],
)
def test_what_has_got_its_offset_already_is_not_appended(broadcast: Broadcast) -> None:
    fixture = BroadcasterFixture(claim(), history_seconds=60)
    assert fixture.end(broadcast) is Ending.COMPLETED
    assert not fixture.stream.appends
    assert not fixture.stream.skips
    assert fixture.table.pages_read == [""]


@pytest.mark.parametrize("known", [None, 5])
def test_the_parts_of_a_shared_room_carry_the_offset(known: int | None) -> None:
    fixture = BroadcasterFixture(claim(offset=known), shards=3, history_seconds=60)
    assert fixture.end() is Ending.SPLIT
    parts = [decode(entry["MessageBody"]) for entry in fixture.pipeline.queue.sent]
    assert {part.offset for part in parts} == {known or 8}
    assert len(fixture.stream.appends) == (known is None)


def test_a_broadcast_that_is_taken_over_before_it_gets_an_offset_is_abandoned() -> None:
    fixture = BroadcasterFixture(claim(), history_seconds=60)
    fixture.stream.results = [Conflict(taken_over=frozenset({0}))]
    assert fixture.end() is Ending.ABANDONED
    assert not fixture.pipeline.engine.in_flight
    assert not fixture.completions.added


def test_a_broadcast_whose_entry_is_rejected_is_delivered_without_an_offset() -> None:
    fixture = BroadcasterFixture(claim(), history_seconds=60)
    fixture.stream.results = [EntryRejected("ValidationException")] * 2
    assert fixture.end() is Ending.COMPLETED
    assert fixture.stream.skips == 1
    assert fixture.completions.added == [claim()]


@pytest.mark.parametrize(
    ("state", "expected"), [(LeaseState.ENDING, Ending.RELEASED), (LeaseState.LOST, Ending.ABANDONED)]
)
def test_a_broadcast_that_waits_for_its_offset_stops_with_its_lease(state: LeaseState, expected: Ending) -> None:
    fixture, held = BroadcasterFixture(claim(), history_seconds=60), lease()
    fixture.stream.results = [DependencyError("down")] * 1_000

    async def script(broadcaster: Broadcaster) -> Ending:
        running = asyncio.create_task(broadcaster.run(TO_ROOM, held, place()))
        await asyncio.sleep(20)
        assert fixture.pipeline.health.problems == {"history": "down"}
        held.transition(state)
        async with asyncio.timeout(0.1):
            return await running

    assert fixture.run_script(script) is expected


def test_dead_letters_of_whole_broadcasts_carry_the_offset() -> None:
    exhausted = claim(receives_without_progress=MAX_RECEIVES_WITHOUT_PROGRESS + 1, offset=5)
    damaged = DamagedProgress("broadcast#room one", 5)
    for results in ([exhausted], [damaged] * 3):
        fixture = BroadcasterFixture(*results, history_seconds=60)
        assert fixture.end() is Ending.GIVEN_UP
        assert decode(fixture.dead_letters.sent[0]["MessageBody"]).offset == 5
        assert not fixture.stream.appends


# Presence


CHANGE = Broadcast(id="%presence/1", room="room", v=2, presence=Presence(departed=("ann",)))


def test_with_nothing_to_announce_a_broadcast_completes_without_a_delivery() -> None:
    fixture = BroadcasterFixture(claim(), members=3, shards=4)
    fixture.pipeline.announcer.result = None
    assert fixture.end(CHANGE) is Ending.COMPLETED
    assert fixture.completions.added == [claim()]
    assert not fixture.pipeline.queue.sent, "no parts"


@pytest.mark.parametrize(("limit", "delivered"), [(3, 3), (2, None)])
def test_an_announcement_is_delivered_up_to_its_limit(limit: int, delivered: int | None) -> None:
    fixture = BroadcasterFixture(claim(), members=3)
    fixture.table.frames = dict.fromkeys(ids(3), V2)
    fixture.pipeline.announcer.result = Announcement(b"{}", limit)
    with capture_logs() as logs:
        assert fixture.end(CHANGE) is Ending.COMPLETED
    [completed] = [each for each in logs if each["event"] == "broadcast.completed"]
    assert completed.get("delivered") == delivered


def test_the_dialects_of_named_connections_are_read_while_the_claim_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    fixture = BroadcasterFixture(claim())
    claimed = fixture.progress.claim
    read_before: list[list[str]] = []

    async def slow_claim(broadcast: Broadcast, claimant: Claimant) -> Claim | NotClaimed:
        await asyncio.sleep(0.01)
        read_before.extend(fixture.table.connections_read)
        return await claimed(broadcast, claimant)

    monkeypatch.setattr(fixture.progress, "claim", slow_claim)
    assert fixture.end(Broadcast(id="one", connections=("a", "b"), data="x")) is Ending.COMPLETED
    assert read_before == fixture.table.connections_read == [["a", "b"]]
