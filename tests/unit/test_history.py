"""Appending to rooms' histories: sharing transactions, lost races, what is rejected, and heads. In virtual time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from msgspec.structs import replace

from gatecast import Broadcast
from tests.pipeline_doubles import FakeStream, claim, lease, now, wall_clock
from tests.simulation import EPOCH, run
from worker.decisions.history import MAX_SHARED, Conflict, NotAppended, SeenHead
from worker.observe.damaged_items import DamagedItems
from worker.observe.health import Health
from worker.observe.metrics import Metrics
from worker.pipeline.history import History
from worker.pipeline.lease import Lease, LeaseState
from worker.ports import DependencyError, EntryRejected, NoResponse

PUBLISHED_AT_MS = int(EPOCH * 1000) - 5
TO_ROOM = Broadcast(id="one", room="room", data="x", published_at_ms=PUBLISHED_AT_MS)
CLOCK_MS = int(EPOCH * 1000)


class HistoryFixture:
    """A history on a FakeStream."""

    def __init__(self, *results: Conflict | Exception | None, at: int | None = 7) -> None:
        self.stream = FakeStream(*results, at=at)
        self.health = Health(clock=now)
        self.metrics = Metrics(self.health)
        self.damaged = {"stream": 0}
        self.numbers = iter(range(10_000))

    def run(self, script: Callable[["HistoryFixture"], Awaitable[Any]]) -> Any:
        found: list[Any] = []

        async def simulation() -> None:
            self.history = History(
                self.stream,
                health=self.health,
                metrics=self.metrics,
                damaged=DamagedItems(self.damaged),
                clock=now,
                wall_clock=wall_clock,
            )
            found.append(await script(self))

        run(simulation())
        return found[0]

    def append(self, *names: str) -> list[int | NotAppended]:
        """Append these messages at once."""

        async def script(fixture: "HistoryFixture") -> list[int | NotAppended]:
            return await asyncio.gather(*map(fixture.begin, names))

        result: list[int | NotAppended] = self.run(script)
        return result

    async def begin(
        self, name: str = "one", *, held: Lease | None = None, order: int | None = None, broadcast: Broadcast = TO_ROOM
    ) -> int | NotAppended:
        return await self.history.append(
            replace(broadcast, id=name),
            claim(name=name),
            held or lease(),
            order=next(self.numbers) if order is None else order,
            history_seconds=60,
        )


def test_a_message_is_written_with_its_offset_and_expires_with_the_history() -> None:
    fixture = HistoryFixture()
    broadcast = replace(TO_ROOM, from_="ann", expires_at_ms=CLOCK_MS + 1)
    assert fixture.run(lambda fixture: fixture.begin(broadcast=broadcast)) == 8
    [entry] = fixture.stream.appends[0].entries
    assert entry.item == {
        "pk": {"S": "stream#room"},
        "sk": {"S": "m#0000000000000008"},
        "id": {"S": "one"},
        "data": {"S": "x"},
        "from": {"S": "ann"},
        "published_at_ms": {"N": str(PUBLISHED_AT_MS)},
        "expires_at": {"N": str(int(EPOCH) + 60)},
        "expires_at_ms": {"N": str(CLOCK_MS + 1)},
    }
    assert fixture.metrics.history_messages["appended"] == 1
    assert fixture.metrics.history_append_duration.total > 0


def test_messages_that_come_together_share_a_transaction_in_order() -> None:
    fixture = HistoryFixture()
    assert fixture.append("a", "b", "c") == [8, 9, 10]
    assert fixture.stream.entries == [("a", 8), ("b", 9), ("c", 10)]
    assert fixture.metrics.history_transactions == 1


def test_messages_that_come_during_a_transaction_share_the_next_one_in_the_order_of_their_broadcasts() -> None:
    fixture = HistoryFixture()

    async def script(fixture: HistoryFixture) -> list[int | NotAppended]:
        first = asyncio.create_task(fixture.begin("first", order=5))
        await asyncio.sleep(0.003)
        late = asyncio.create_task(fixture.begin("late", order=9))
        await asyncio.sleep(0.001)
        early = asyncio.create_task(fixture.begin("early", order=6))
        return [await first, await late, await early]

    assert fixture.run(script) == [8, 10, 9]
    assert fixture.stream.entries == [("early", 9), ("late", 10)]
    assert fixture.stream.heads_read == 1, "after a success the head is known"


def test_more_messages_than_a_transaction_can_hold_need_several() -> None:
    fixture = HistoryFixture()
    offsets = fixture.append(*(f"b{number}" for number in range(120)))
    assert offsets == list(range(8, 128))
    assert [len(request.entries) for request in fixture.stream.appends] == [MAX_SHARED, MAX_SHARED, 22]


def test_rooms_do_not_wait_for_each_other() -> None:
    fixture = HistoryFixture()

    async def script(fixture: HistoryFixture) -> float:
        rooms = [replace(TO_ROOM, room=f"room{number}") for number in range(20)]
        await asyncio.gather(*(fixture.begin(str(room.room), broadcast=room) for room in rooms))
        return now()

    assert fixture.run(script) < 0.02
    assert len(fixture.stream.appends) == 20


def test_after_a_lost_race_the_offsets_continue_from_the_head_in_the_response() -> None:
    fixture = HistoryFixture(Conflict(SeenHead.at(20), head_changed=True))
    assert fixture.append("a", "b") == [21, 22]
    assert [request.head for request in fixture.stream.appends] == [SeenHead.at(7), SeenHead.at(20)]
    assert fixture.stream.heads_read == 1
    assert fixture.metrics.history_conflicts == 1


def test_a_head_that_the_response_does_not_contain_is_read() -> None:
    fixture = HistoryFixture(Conflict(head_changed=True))
    assert fixture.append("a") == [8]
    assert fixture.stream.heads_read == 2


def test_a_transaction_that_collides_with_another_is_repeated_with_the_same_head() -> None:
    fixture = HistoryFixture(Conflict(), Conflict())
    assert fixture.append("a") == [8]
    assert len(fixture.stream.appends) == 3
    assert len({request.token for request in fixture.stream.appends}) == 3
    assert fixture.metrics.history_conflicts == 2
    assert not fixture.health.failures["history"], "another writer is no failure of the table"


def test_a_broadcast_that_was_taken_over_does_not_fail_the_others() -> None:
    fixture = HistoryFixture(Conflict(taken_over=frozenset({1})))
    assert fixture.append("a", "b", "c") == [8, NotAppended.TAKEN_OVER, 9]
    assert fixture.metrics.history_conflicts == 0
    assert fixture.metrics.history_messages["appended"] == 2


def test_after_a_lost_response_the_identical_transaction_is_repeated() -> None:
    fixture = HistoryFixture(NoResponse("reset"), DependencyError("ThrottlingException"))
    assert fixture.append("a", "b") == [8, 9]
    first, second, third = fixture.stream.appends
    assert first == second == third
    assert len(first.token) <= 36
    assert fixture.health.failures["history"] == 2


def test_if_the_service_forgot_the_token_the_recorded_offsets_show_that_it_was_executed() -> None:
    executed = Conflict(SeenHead.at(9), head_changed=True, occupied=frozenset({0, 1}), recorded={0: 8, 1: 9})
    fixture = HistoryFixture(NoResponse("reset"), executed)
    assert fixture.append("a", "b") == [8, 9]


def test_an_entry_beyond_the_head_is_passed_at_the_clock() -> None:
    fixture = HistoryFixture(*[Conflict(occupied=frozenset({0}))] * 3)
    assert fixture.append("a") == [fixture.stream.appends[-1].entries[0].offset]
    tried = [request.entries[0].offset for request in fixture.stream.appends]
    assert tried[0] == 8
    assert tried[1:] == sorted(set(tried[1:]))
    assert all(CLOCK_MS < offset < CLOCK_MS + 100 for offset in tried[1:])
    assert fixture.metrics.history_conflicts == 0


def test_a_room_in_which_no_offset_is_free_is_not_tried_for_ever() -> None:
    fixture = HistoryFixture(*[Conflict(occupied=frozenset({0}))] * 100)
    assert fixture.append("a") == [NotAppended.REJECTED]
    assert len(fixture.stream.appends) < 60
    assert fixture.metrics.history_messages["rejected"] == 1


def test_a_damaged_head_is_reported_and_the_room_continues_at_the_clock() -> None:
    fixture = HistoryFixture()
    fixture.stream.seen = SeenHead({"S": "many"})
    assert fixture.append("a") == [CLOCK_MS + 1]
    assert fixture.stream.appends[0].head == SeenHead({"S": "many"})
    assert fixture.damaged == {"stream": 1}


def test_a_message_that_is_rejected_leaves_an_entry_that_clients_see_as_missing() -> None:
    fixture = HistoryFixture(EntryRejected("ValidationException"), None, EntryRejected("ValidationException"))
    assert fixture.append("a", "b", "c") == [8, 9, 10]
    items = [entry.item for request in fixture.stream.appends[1:] for entry in request.entries]
    assert [(item["id"]["S"], "data" in item) for item in items] == [
        ("a", True),
        ("b", True),
        ("b", False),
        ("c", True),
    ]
    assert fixture.metrics.history_messages == {"appended": 2, "without_payload": 1, "rejected": 0}


def test_a_message_that_is_rejected_even_without_its_payload_has_no_offset() -> None:
    fixture = HistoryFixture(*[EntryRejected("ValidationException")] * 2)
    assert fixture.append("a") == [NotAppended.REJECTED]
    assert fixture.metrics.history_messages == {"appended": 0, "without_payload": 0, "rejected": 1}


def test_a_lease_that_ends_before_or_during_the_wait_stops_it() -> None:
    for state in (LeaseState.ENDING, LeaseState.LOST):
        fixture, held = HistoryFixture(), lease()

        async def script(
            fixture: HistoryFixture, held: Lease = held, state: LeaseState = state
        ) -> tuple[list[int | NotAppended], float]:
            running = asyncio.create_task(fixture.begin("in flight", held=held))
            await asyncio.sleep(0.002)
            waiting = asyncio.create_task(fixture.begin("waiting", held=held))
            await asyncio.sleep(0.001)
            other = asyncio.create_task(fixture.begin("other"))
            await asyncio.sleep(0.001)
            held.transition(state)
            stopped = await asyncio.gather(running, waiting)
            stopped_at = now()
            return [*stopped, await other, await fixture.begin("late", held=held)], stopped_at

        found, stopped_at = fixture.run(script)
        assert found[1] is NotAppended.STOPPED
        assert found[2:] == [9, NotAppended.STOPPED]
        assert stopped_at < 0.0062, "it does not wait for the response"
        assert fixture.stream.entries == [("other", 9)]
        assert held.on_change is None


def test_an_unexpected_error_reaches_all_that_wait_and_the_room_continues() -> None:
    fixture = HistoryFixture(AttributeError("a defect"))

    async def script(fixture: HistoryFixture) -> list[Any]:
        first = asyncio.create_task(fixture.begin("a"))
        await asyncio.sleep(0.003)
        second = asyncio.create_task(fixture.begin("b"))
        errors = await asyncio.gather(first, second, return_exceptions=True)
        return [*errors, await fixture.begin("c")]

    *errors, offset = fixture.run(script)
    assert [type(error) for error in errors] == [AttributeError, AttributeError]
    assert offset == 8


def test_a_known_head_is_not_read_again_unless_a_race_was_lost_recently() -> None:
    fixture = HistoryFixture()

    async def script(fixture: HistoryFixture) -> list[int]:
        reads = []
        for conflict, pause in (
            (None, 0.0),
            (None, 60.0),
            (Conflict(SeenHead.at(20), head_changed=True), 1.0),
            (None, 6.0),
        ):
            fixture.history.begin("room")
            fixture.stream.results = [conflict]
            await fixture.begin()
            reads.append(fixture.stream.heads_read)
            await asyncio.sleep(pause)
        fixture.history.begin("room")
        reads.append(fixture.stream.heads_read)
        return reads

    assert fixture.run(script) == [1, 1, 1, 2, 2]


def test_the_head_is_read_while_the_claim_is_written() -> None:
    fixture = HistoryFixture()

    async def script(fixture: HistoryFixture) -> float:
        fixture.history.begin("room")
        fixture.history.begin("room")
        await asyncio.sleep(0.005)
        started_at = now()
        assert await fixture.begin() == 8
        return now() - started_at

    assert fixture.run(script) == pytest.approx(0.005)
    assert fixture.stream.heads_read == 1


def test_a_read_that_fails_is_repeated_when_the_head_is_needed() -> None:
    fixture = HistoryFixture()
    reads = 0

    async def failing(room: str) -> SeenHead:
        nonlocal reads
        reads += 1
        if reads <= 2:
            raise DependencyError(room)
        return SeenHead.at(7)

    async def script(fixture: HistoryFixture) -> int | NotAppended:
        fixture.stream.head = failing  # type: ignore[method-assign]
        fixture.history.begin("room")
        return await fixture.begin()

    assert fixture.run(script) == 8
    assert fixture.health.failures["history"] == 1


def test_memory_does_not_grow_with_the_number_of_rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.pipeline.history._MAX_ROOMS", 10)
    fixture = HistoryFixture()

    async def script(fixture: HistoryFixture) -> list[bool]:
        for number in range(30):
            await fixture.begin(broadcast=replace(TO_ROOM, room=f"room{number}"))
        return [fixture.history.remembers(f"room{number}") for number in range(30)]

    assert sum(fixture.run(script)) == 10
    assert not fixture.history._queues
    assert not fixture.history._reads


def test_a_message_that_is_delivered_without_an_offset_leaves_a_hole_while_clients_may_have_positions() -> None:
    """Otherwise a client that was cut off before it, and resumes when the history is on again, misses it in silence."""
    fixture = HistoryFixture()

    async def script(fixture: HistoryFixture) -> list[int]:
        skips = []
        await fixture.history.omit("room", has_history=False)
        skips.append(fixture.stream.skips)
        assert await fixture.begin("one") == 8
        fixture.stream.seen = SeenHead.at(8)
        await asyncio.sleep(3_600)
        for seconds in (0, 59, 2, 1_000):
            await asyncio.sleep(seconds)
            await fixture.history.omit("room", has_history=False)
            skips.append(fixture.stream.skips)
        return skips

    assert fixture.run(script) == [0, 1, 2, 2, 2]
    assert not fixture.history.remembers("room")


def test_after_a_hole_the_next_message_follows_it() -> None:
    fixture = HistoryFixture()

    async def script(fixture: HistoryFixture) -> int | NotAppended:
        await fixture.begin("one")
        fixture.stream.seen = SeenHead.at(8)
        await fixture.history.omit("room", has_history=True)
        return await fixture.begin("two")

    assert fixture.run(script) == 10
