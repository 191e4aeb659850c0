"""One broadcast in progress: pages, checkpoints, stops, missed deliveries, remainders and parking. In virtual time."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise

import pytest
from msgspec import UNSET, UnsetType
from structlog.testing import capture_logs

from gatecast import Broadcast, decode
from gatecast.broadcast import MAX_DATA_BYTES
from gatecast.frames import V1, V2, Link
from tests.pipeline_doubles import FakeProgress, FakeQueue, FakeTable, Pipeline, claim, ids, lease, reasons
from tests.simulation import run
from worker.decisions.checkpoint import RENEW_SECONDS, WINDOW, Checkpoint
from worker.decisions.outcome import Outcome
from worker.decisions.receipts import ReceiptState
from worker.pipeline.capacity import Capacity
from worker.pipeline.lease import LeaseState
from worker.pipeline.run import Run
from worker.ports import Connection, DependencyError

TO_ROOM = Broadcast(id="one", room="room", data="x")
TOO_LARGE = Broadcast(id="one", room="room", data="x" * MAX_DATA_BYTES, published_at_ms=1_700_000_000_000)


class RunFixture:
    """A run of a broadcast with an engine that the test controls. `settled` is what `deliver` returned."""

    def __init__(
        self,
        members: int = 3,
        *,
        broadcast: Broadcast = TO_ROOM,
        start: Checkpoint | None = None,
        page_size: int = 100,
        delivers: bool = False,
        fifo: bool = False,
        dead_letter_queue: bool = True,
        link: Link | UnsetType = UNSET,
    ) -> None:
        self.dead_letters = FakeQueue(url="http://queue/dead-letters")
        self.table = FakeTable(*ids(members), page_size=page_size)
        self.progress = FakeProgress()
        self.pipeline = Pipeline(
            self.table,
            self.progress,
            delivers=delivers,
            dead_letters=self.dead_letters if dead_letter_queue else None,
            url=f"http://queue/broadcasts{'.fifo' if fifo else ''}",
        )
        self.engine = self.pipeline.engine
        self.capacity = Capacity(1)
        self.lease = lease()
        self.settled: bool | None = None
        self._broadcast = broadcast
        self._start = start
        self._link = link

    def play(self, script: Callable[[Run], Awaitable[None]]) -> None:
        """Run the broadcast beside the script, to its end."""

        async def simulation() -> None:
            run_ = Run(
                self.pipeline.services,
                self._broadcast,
                self.lease,
                claim=claim(start=self._start),
                claimed_at=0.0,
                place=self.capacity.reserve("room"),
                order=0,
                link=self._link,
            )
            delivering = asyncio.create_task(run_.deliver())
            waking = asyncio.create_task(self._wake(run_))
            await asyncio.sleep(0.1)
            await script(run_)
            self.settled = await asyncio.wait_for(delivering, 3_600)
            waking.cancel()

        run(simulation())

    async def _wake(self, run_: Run) -> None:
        """What the broadcaster does for all runs."""
        while True:
            await asyncio.sleep(0.25)
            run_.wake()

    @property
    def last_checkpoint(self) -> Checkpoint:
        return self.progress.checkpoints[-1][0]


async def wait(_: Run) -> None: ...


def test_all_pages_are_read_and_no_more_than_a_window_is_delivered_between_checkpoints() -> None:
    members = ids(2_600)
    fixture = RunFixture(len(members), page_size=300, delivers=True)

    async def script(run_: Run) -> None:
        await asyncio.sleep(60)
        assert run_.fanout.counts[Outcome.DELIVERED] == len(members)

    fixture.play(script)
    assert fixture.settled
    assert fixture.table.pages_read == ["", *members[299:-1:300]]
    positions = [members.index(checkpoint.cursor) + 1 for checkpoint, _ in fixture.progress.checkpoints]
    assert all(later - earlier <= WINDOW for earlier, later in pairwise([0, *positions, len(members)]))


def test_members_beyond_the_window_wait_for_a_checkpoint() -> None:
    fixture = RunFixture(WINDOW + 10, page_size=2_000)

    async def script(run_: Run) -> None:
        assert len(fixture.engine.in_flight) == WINDOW
        for each in list(fixture.engine.in_flight):
            fixture.engine.deliver(each)
        await asyncio.sleep(1)
        assert fixture.progress.checkpoints
        assert len(fixture.engine.in_flight) == 10
        assert run_.fanout.cursor == ids(WINDOW + 10)[-1]
        fixture.engine.delivers = True
        for each in list(fixture.engine.in_flight):
            fixture.engine.deliver(each)

    fixture.play(script)
    assert fixture.settled


def test_a_resumed_run_delivers_pending_members_and_continues_after_the_cursor() -> None:
    start = Checkpoint(cursor="c0001=", pending=(("c0000=", 0),))
    fixture = RunFixture(4, start=start, delivers=True)
    delivered: list[str] = []
    deliver = fixture.engine.deliver

    def recorded(connection_id: str) -> None:
        delivered.append(connection_id)
        deliver(connection_id)

    fixture.engine.deliver = recorded  # type: ignore[method-assign]
    fixture.play(wait)
    assert fixture.settled
    assert delivered == ["c0000=", "c0002=", "c0003="]


def test_a_stop_waits_for_responses_and_then_writes_the_exact_position() -> None:
    fixture = RunFixture(3)

    async def script(_: Run) -> None:
        fixture.engine.deliver("c0000=")
        fixture.lease.transition(LeaseState.ENDING)
        await asyncio.sleep(5)
        fixture.engine.deliver("c0001=")
        fixture.engine.fail("c0002=", 1)

    fixture.play(script)
    assert fixture.settled is False
    assert fixture.last_checkpoint == Checkpoint("c0002=", (("c0002=", 0),))


def test_a_run_that_is_cut_short_does_not_wait_for_responses() -> None:
    fixture = RunFixture(3)

    async def script(run_: Run) -> None:
        fixture.lease.transition(LeaseState.ENDING)
        run_.cut_short()
        await asyncio.sleep(0.1)
        assert fixture.progress.checkpoints

    fixture.play(script)
    assert fixture.settled is False
    assert [each for each, _ in fixture.last_checkpoint.pending] == ids(3)


def test_after_a_lost_lease_nothing_is_written() -> None:
    fixture = RunFixture(3)

    async def script(_: Run) -> None:
        fixture.lease.transition(LeaseState.LOST)

    fixture.play(script)
    assert fixture.settled is False
    assert not fixture.progress.checkpoints


def test_a_rejected_checkpoint_loses_the_lease() -> None:
    """The broadcast has been taken over: this worker must not post for it any longer."""
    fixture = RunFixture(3)
    fixture.progress.held = False

    async def script(run_: Run) -> None:
        fixture.engine.deliver("c0000=")
        await asyncio.sleep(2)
        assert run_.fanout.stopped

    fixture.play(script)
    assert fixture.settled is False
    assert fixture.lease.state is LeaseState.LOST


def test_a_run_without_progress_renews_its_claim_every_minute() -> None:
    fixture = RunFixture(1)

    async def script(_: Run) -> None:
        await asyncio.sleep(5 * RENEW_SECONDS)
        assert len(fixture.progress.checkpoints) in (4, 5)
        assert not any(made_progress for _, made_progress in fixture.progress.checkpoints)
        fixture.engine.deliver("c0000=")

    fixture.play(script)
    assert fixture.settled


@pytest.mark.parametrize("outcome", [Outcome.REJECTED, Outcome.UNDELIVERED])
def test_missed_deliveries_are_dead_lettered_before_the_run_is_settled(outcome: Outcome) -> None:
    fixture = RunFixture(3)

    async def script(_: Run) -> None:
        fixture.engine.settle("c0001=", outcome)
        fixture.engine.deliver("c0000=")
        await asyncio.sleep(2)
        assert not fixture.dead_letters.sent
        fixture.engine.deliver("c0002=")

    fixture.play(script)
    assert fixture.settled
    assert reasons(fixture.dead_letters) == [str(outcome)]
    assert decode(fixture.dead_letters.sent[0]["MessageBody"]).connections == ("c0001=",)


def test_gone_members_are_offered_to_the_reaper() -> None:
    fixture = RunFixture(2)

    async def script(_: Run) -> None:
        fixture.engine.settle("c0000=", Outcome.GONE)
        fixture.engine.deliver("c0001=")

    fixture.play(script)
    assert fixture.settled
    assert fixture.pipeline.reaper.offered == ["c0000="]
    assert not fixture.dead_letters.sent


def test_a_run_that_only_waits_parks_and_releases_its_place() -> None:
    fixture = RunFixture(2)

    async def script(_: Run) -> None:
        fixture.engine.deliver("c0000=")
        assert fixture.capacity.free == 0
        fixture.engine.fail("c0001=", 1)
        await asyncio.sleep(0.5)
        assert (fixture.capacity.free, fixture.capacity.parked) == (1, 1)
        fixture.lease.transition(LeaseState.ENDING)

    fixture.play(script)
    assert fixture.settled is False


def test_if_too_many_are_parked_slow_deliveries_leave_as_a_delayed_remainder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.pipeline.capacity.MAX_PARKED", 0)
    fixture = RunFixture(2)

    async def script(_: Run) -> None:
        fixture.engine.deliver("c0000=")
        fixture.engine.fail("c0001=", 2)

    fixture.play(script)
    assert fixture.settled
    [entry] = fixture.pipeline.queue.sent
    assert decode(entry["MessageBody"]).connections == ("c0001=",)
    assert entry["DelaySeconds"] >= 15
    assert fixture.pipeline.metrics.remainders == 1


def test_on_a_fifo_queue_slow_deliveries_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A FIFO queue cannot delay single messages."""
    monkeypatch.setattr("worker.pipeline.capacity.MAX_PARKED", 0)
    fixture = RunFixture(2, fifo=True)

    async def script(_: Run) -> None:
        fixture.engine.deliver("c0000=")
        fixture.engine.fail("c0001=", 2)
        await asyncio.sleep(30)
        assert not fixture.pipeline.queue.sent
        fixture.lease.transition(LeaseState.ENDING)

    fixture.play(script)
    assert fixture.settled is False


def test_what_an_earlier_worker_handed_off_is_delivered_once_the_queue_is_a_fifo_queue() -> None:
    """Its remainder may never have been sent, and none can be sent now."""
    state = ReceiptState(handed_off=("c0000=",))
    fixture = RunFixture(0, start=Checkpoint("c0000=", pending=(("c0000=", None),), receipt=state), fifo=True)

    async def script(_: Run) -> None:
        fixture.engine.deliver("c0000=")

    fixture.play(script)
    assert fixture.settled
    assert not fixture.pipeline.queue.sent


def test_named_connections_are_delivered_once_each_in_their_dialects() -> None:
    broadcast = Broadcast(id="one", connections=("b", "a", "b"), data="x")
    fixture = RunFixture(0, broadcast=broadcast)
    fixture.table.frames["a"] = V2

    async def script(_: Run) -> None:
        in_flight = fixture.engine.in_flight
        assert [(each, in_flight[each].body.frames) for each in in_flight] == [("b", V1), ("a", V2)]
        assert [each.joined_at_ms for each in in_flight.values()] == [None, None]
        assert not fixture.table.pages_read
        assert fixture.table.connections_read == [["b", "a"]]
        for each in ("b", "a"):
            fixture.engine.deliver(each)

    fixture.play(script)
    assert fixture.settled


def test_the_dialects_of_many_named_connections_are_read_a_hundred_at_a_time() -> None:
    named = ids(250)
    fixture = RunFixture(0, broadcast=Broadcast(id="one", connections=tuple(named), data="x"), delivers=True)
    fixture.play(wait)
    assert fixture.settled
    assert fixture.table.connections_read == [named[:100], named[100:200], named[200:]]


def test_a_resumed_broadcast_to_connections_reads_only_those_that_were_not_read() -> None:
    named = ids(150)
    start = Checkpoint("120", (("c0001=", None), ("c0002=", None)), ("c0002=",))
    fixture = RunFixture(0, broadcast=Broadcast(id="one", connections=tuple(named), data="x"), start=start)

    async def script(run_: Run) -> None:
        in_flight = fixture.engine.in_flight
        assert list(in_flight) == ["c0001=", "c0002=", *named[120:]]
        assert {each for each, delivery in in_flight.items() if delivery.body.frames == V2} == {"c0002="}
        assert run_.fanout.checkpoint().cursor == "150"
        for each in list(in_flight):
            fixture.engine.deliver(each)

    fixture.play(script)
    assert fixture.settled
    assert fixture.table.connections_read == [named[120:]]


def test_dialects_are_read_again_until_they_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    fixture = RunFixture(0, broadcast=Broadcast(id="one", connections=("a",), data="x"), delivers=True)
    read = fixture.table.connections
    failures = [DependencyError("broken")] * 3

    async def connections(connection_ids: Sequence[str]) -> dict[str, Connection]:
        if failures:
            raise failures.pop()
        return await read(connection_ids)

    monkeypatch.setattr(fixture.table, "connections", connections)

    async def script(_: Run) -> None:
        assert fixture.pipeline.health.problems
        await asyncio.sleep(30)
        assert not fixture.pipeline.health.problems

    fixture.play(script)
    assert fixture.settled


def too_large_for_frames(members: int, *, configured: bool = True) -> RunFixture:
    """A run of a broadcast whose payload fits and whose frame does not. Every second member uses v2."""
    fixture = RunFixture(members, broadcast=TOO_LARGE, page_size=300, delivers=True, dead_letter_queue=configured)
    fixture.table.frames.update(dict.fromkeys(ids(members)[1::2], V2))
    return fixture


def test_a_frame_that_is_too_large_is_one_dead_letter_and_v1_members_receive_the_payload() -> None:
    fixture = too_large_for_frames(3_000)

    async def script(run_: Run) -> None:
        await asyncio.sleep(60)
        assert run_.fanout.counts[Outcome.DELIVERED] == run_.fanout.counts[Outcome.REJECTED] == 1_500

    fixture.play(script)
    assert fixture.settled
    assert reasons(fixture.dead_letters) == ["too_large"]
    assert decode(fixture.dead_letters.sent[0]["MessageBody"]) == TOO_LARGE
    assert fixture.pipeline.metrics.dead_letters["too_large"] == 1


def test_members_who_miss_a_frame_that_is_too_large_are_pending_until_its_dead_letter_is_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fixture = too_large_for_frames(4)
    stored = asyncio.Event()

    async def send(_messages: object) -> list[None]:
        await stored.wait()
        return [None]

    monkeypatch.setattr(fixture.dead_letters, "send", send)

    async def script(run_: Run) -> None:
        await asyncio.sleep(2)
        checkpoint = run_.fanout.checkpoint()
        assert checkpoint == Checkpoint("c0003=", (("c0001=", 0),), ("c0001=",))
        assert fixture.last_checkpoint == checkpoint
        stored.set()

    fixture.play(script)
    assert fixture.settled


def test_without_a_dead_letter_queue_a_frame_that_is_too_large_is_logged_once() -> None:
    fixture = too_large_for_frames(3_000, configured=False)

    async def script(_: Run) -> None:
        await asyncio.sleep(60)

    with capture_logs() as logged:
        fixture.play(script)
    assert fixture.settled
    assert [(each["event"], each["id"]) for each in logged if each["log_level"] == "error"] == [
        ("broadcast.too_large", "one")
    ]
    assert fixture.pipeline.metrics.dead_letters["too_large"] == 1


def test_a_remainder_names_the_room_the_offset_and_whom_the_broadcast_excludes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.pipeline.capacity.MAX_PARKED", 0)
    fixture = RunFixture(
        3, broadcast=Broadcast(id="one", room="room", data="x", offset=7, except_=("c0000=", "c0001="))
    )
    fixture.table.frames.update({"c0001=": V2, "c0002=": V2})

    async def script(_: Run) -> None:
        for each in ("c0001=", "c0002="):
            fixture.engine.fail(each, 2)

    fixture.play(script)
    assert fixture.settled
    [entry] = fixture.pipeline.queue.sent
    remainder = decode(entry["MessageBody"])
    assert (remainder.origin_room, remainder.offset) == ("room", 7)
    assert (remainder.connections, remainder.except_) == (("c0001=", "c0002="), ("c0001=",))


def test_a_remainder_that_is_too_long_for_a_message_leaves_as_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other programs may write memberships with ids that take six bytes per character in JSON."""
    monkeypatch.setattr("worker.pipeline.capacity.MAX_PARKED", 0)
    named = tuple(f"\x01{number:03d}".ljust(120, "\x01") for number in range(400))
    fixture = RunFixture(0, broadcast=Broadcast(id="one", connections=named, data="\x01" * MAX_DATA_BYTES))

    async def script(_: Run) -> None:
        for each in named:
            fixture.engine.fail(each, 2)

    fixture.play(script)
    assert fixture.settled
    remainders = [decode(entry["MessageBody"]).connections or () for entry in fixture.pipeline.queue.sent]
    assert len(remainders) == fixture.pipeline.metrics.remainders == 2
    assert sorted(each for remainder in remainders for each in remainder) == sorted(named)
