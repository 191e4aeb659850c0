"""One broadcast in progress: pages, checkpoints, stops, missed deliveries, remainders and parking. In virtual time."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest

from gatecast import Broadcast, decode
from tests.pipeline_doubles import FakeProgress, FakeQueue, FakeTable, Pipeline, claim, ids, lease, reasons
from tests.simulation import run
from worker.decisions.checkpoint import RENEW_SECONDS, WINDOW, Checkpoint
from worker.decisions.outcome import Outcome
from worker.pipeline.capacity import Capacity
from worker.pipeline.lease import LeaseState
from worker.pipeline.run import Run

TO_ROOM = Broadcast(id="one", room="room", data="x")


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
    ) -> None:
        self.dead_letters = FakeQueue(url="http://queue/dead-letters")
        self.table = FakeTable(*ids(members), page_size=page_size)
        self.progress = FakeProgress()
        self.pipeline = Pipeline(
            self.table,
            self.progress,
            delivers=delivers,
            dead_letters=self.dead_letters,
            url=f"http://queue/broadcasts{'.fifo' if fifo else ''}",
        )
        self.engine = self.pipeline.engine
        self.capacity = Capacity(1)
        self.lease = lease()
        self.settled: bool | None = None
        self._broadcast = broadcast
        self._start = start

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


def test_named_connections_are_delivered_once_each() -> None:
    broadcast = Broadcast(id="one", connections=("b", "a", "b"), data="x")
    fixture = RunFixture(0, broadcast=broadcast)

    async def script(_: Run) -> None:
        assert list(fixture.engine.in_flight) == ["b", "a"]
        assert not fixture.table.pages_read
        for each in ("b", "a"):
            fixture.engine.deliver(each)

    fixture.play(script)
    assert fixture.settled
