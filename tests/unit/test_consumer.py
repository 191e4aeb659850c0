"""The consumer: what becomes of a message after each ending, back-pressure, FIFO groups and a stop. In virtual time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast

import pytest

from gatecast import Broadcast
from tests.pipeline_doubles import VISIBILITY_SECONDS, FakeQueue, message, now, reasons, wall_clock
from tests.simulation import run
from worker.observe.health import Health
from worker.observe.metrics import Metrics
from worker.pipeline.broadcaster import Broadcaster, Ending
from worker.pipeline.capacity import Capacity, Place
from worker.pipeline.consumer import Consumer
from worker.pipeline.dead_letters import DeadLetters
from worker.pipeline.lease import Lease, LeaseKeeper, LeaseState
from worker.ports import DependencyError, Message, MessageQueue, StaleReceipt

Handle = Callable[[Broadcast, Lease], Awaitable[Ending]]


class FakeBroadcaster:
    """Records the broadcasts that start, in order, and ends each as `handle` says."""

    def __init__(self, handle: Handle) -> None:
        self.started: list[str] = []
        self._handle = handle

    async def run(self, broadcast: Broadcast, lease: Lease, place: Place) -> Ending:
        del place
        self.started.append(broadcast.id)
        return await self._handle(broadcast, lease)


class ConsumerFixture:
    """A consumer with a queue that holds `messages`."""

    def __init__(
        self, handle: Handle, *messages: Message, places: int = 10, fifo: bool = False, dead_letters: bool = True
    ) -> None:
        self.queue = FakeQueue(*messages, url=f"http://queue/broadcasts{'.fifo' if fifo else ''}")
        self.dead_letters = FakeQueue(url="http://queue/dead-letters")
        self.broadcaster = FakeBroadcaster(handle)
        self.health = Health(clock=now)
        self.metrics = Metrics(self.health)
        self.capacity = Capacity(places)
        self.leases = LeaseKeeper(
            cast(MessageQueue, self.queue),
            visibility_seconds=VISIBILITY_SECONDS,
            health=self.health,
            outcomes=self.metrics.lease_extensions,
            clock=now,
        )
        self.consumer = Consumer(
            queue=cast(MessageQueue, self.queue),
            leases=self.leases,
            broadcaster=cast(Broadcaster, self.broadcaster),
            dead_letters=DeadLetters(
                cast(MessageQueue, self.dead_letters) if dead_letters else None, self.health, self.metrics.dead_letters
            ),
            health=self.health,
            metrics=self.metrics,
            capacity=self.capacity,
            visibility_seconds=VISIBILITY_SECONDS,
            poll_grace_seconds=6,
            wall_clock=wall_clock,
        )

    def run(self, *, seconds: float = 3, before_stop: Callable[[], None] = lambda: None) -> None:
        """Consume for some seconds of virtual time, then stop. Afterwards nothing may be held."""

        async def simulation() -> None:
            task = asyncio.create_task(self.consumer.run())
            await asyncio.sleep(seconds)
            before_stop()
            self.consumer.stop()
            await task

        run(simulation())
        assert self.capacity.taken == 0
        assert len(self.leases) == 0


def ending(each: Ending) -> Handle:
    async def handle(_broadcast: Broadcast, _lease: Lease) -> Ending:
        return each

    return handle


async def until_asked_to_stop(_broadcast: Broadcast, lease: Lease) -> Ending:
    changed = asyncio.Event()
    lease.on_change = changed.set
    if lease.state is LeaseState.HELD:
        await changed.wait()
    return Ending.RELEASED


DONE = {Ending.COMPLETED, Ending.SPLIT, Ending.EXPIRED, Ending.DUPLICATE, Ending.GIVEN_UP}


@pytest.mark.parametrize("each", Ending)
def test_a_message_is_deleted_exactly_if_nothing_is_left_to_do(each: Ending) -> None:
    fixture = ConsumerFixture(ending(each), message("a"))
    fixture.run()
    assert fixture.queue.deleted == (["a"] if each in DONE else [])


def test_a_released_message_becomes_visible_at_once() -> None:
    fixture = ConsumerFixture(ending(Ending.RELEASED), message("a"))
    fixture.run()
    assert fixture.queue.visibility == [("a", 0)]


def test_an_abandoned_message_is_not_touched() -> None:
    fixture = ConsumerFixture(ending(Ending.ABANDONED), message("a"))
    fixture.run()
    assert not fixture.queue.visibility


def test_an_error_abandons_the_message() -> None:
    async def fail(_broadcast: Broadcast, _lease: Lease) -> Ending:
        raise ValueError

    fixture = ConsumerFixture(fail, message("a"), message("b", room="other"))
    fixture.run()
    assert fixture.broadcaster.started == ["a", "b"]
    assert not fixture.queue.visibility
    assert not fixture.queue.deleted


@pytest.mark.parametrize("deferred", [Ending.HELD, Ending.DEFERRED])
@pytest.mark.parametrize(("receive_count", "least", "greatest"), [(1, 3, 7), (4, 30, 50), (90, 600, 1_200)])
def test_a_held_message_is_deferred_for_a_time_that_grows_with_its_receives(
    receive_count: int, least: int, greatest: int, deferred: Ending
) -> None:
    fixture = ConsumerFixture(ending(deferred), message("a", receive_count=receive_count))
    fixture.run()
    assert not fixture.queue.deleted
    [(_, seconds)] = fixture.queue.visibility
    assert least <= seconds <= greatest
    assert fixture.metrics.deferred == 1


def test_poison_is_stored_as_a_dead_letter_and_deleted() -> None:
    fixture = ConsumerFixture(ending(Ending.COMPLETED), message("a", body="no broadcast"))
    fixture.run()
    assert not fixture.broadcaster.started
    assert [entry["MessageBody"] for entry in fixture.dead_letters.sent] == ["no broadcast"]
    assert reasons(fixture.dead_letters)[0].startswith("poison")
    assert fixture.queue.deleted == ["a"]


def test_poison_stays_on_the_queue_for_a_while_if_there_is_no_dead_letter_queue() -> None:
    fixture = ConsumerFixture(ending(Ending.COMPLETED), message("a", body="no broadcast"), dead_letters=False)
    fixture.run()
    assert not fixture.queue.deleted
    assert fixture.queue.visibility == [("a", 900)]


def test_a_deletion_is_retried_until_it_succeeds() -> None:
    fixture = ConsumerFixture(ending(Ending.COMPLETED), message("a"))
    fixture.queue.errors += [DependencyError("InternalError")] * 3
    fixture.run(seconds=30)
    assert fixture.queue.deleted == ["a"]


def test_a_deletion_with_a_stale_receipt_handle_is_not_retried() -> None:
    fixture = ConsumerFixture(ending(Ending.COMPLETED), message("a"))
    fixture.queue.errors.append(StaleReceipt("ReceiptHandleIsInvalid"))
    fixture.run(seconds=30)
    assert not fixture.queue.deleted
    assert not fixture.queue.visibility


def test_nothing_is_received_while_no_place_is_free() -> None:
    fixture = ConsumerFixture(until_asked_to_stop, message("a"), message("b", room="other"), message("c"), places=2)

    def before_stop() -> None:
        assert fixture.broadcaster.started == ["a", "b"]
        assert fixture.queue.limits == [2], "one receive, for as many messages as there are places"
        assert [each.id for each in fixture.queue.messages] == ["c"]

    fixture.run(seconds=60, before_stop=before_stop)


def test_a_stop_asks_running_broadcasts_to_stop_and_releases_waiting_ones() -> None:
    names = ("a", "b", "c")
    fixture = ConsumerFixture(until_asked_to_stop, *map(message, names), places=2)

    def before_stop() -> None:
        assert fixture.broadcaster.started == ["a"], "no room may take every place"
        assert fixture.consumer.waiting == 2

    fixture.run(seconds=20, before_stop=before_stop)
    assert sorted(fixture.queue.visibility) == [(name, 0) for name in names]
    assert not fixture.queue.deleted


def test_nothing_is_released_while_a_long_poll_is_open() -> None:
    """SQS would deliver it to that poll, although its receiver is about to end."""
    fixture = ConsumerFixture(until_asked_to_stop, message("a"))
    polls_open = 0
    receive, change = fixture.queue.receive, fixture.queue.change_visibility

    async def counted_receive(limit: int, *, visibility_seconds: int, wait: bool = True) -> list[Message]:
        nonlocal polls_open
        polls_open += 1
        try:
            return await receive(limit, visibility_seconds=visibility_seconds, wait=wait)
        finally:
            polls_open -= 1

    async def checked_change(receipt_handles: list[str], seconds: int) -> list[object]:
        assert polls_open == 0
        return list(await change(receipt_handles, seconds))

    fixture.queue.receive = counted_receive  # type: ignore[method-assign]
    fixture.queue.change_visibility = checked_change  # type: ignore[method-assign,assignment]
    fixture.run()
    assert fixture.queue.visibility == [("a", 0)]


def test_messages_of_a_fifo_group_run_one_after_the_other() -> None:
    running: set[str] = set()

    async def handle(broadcast: Broadcast, _lease: Lease) -> Ending:
        assert not {name for name in running if name[0] == broadcast.id[0]}
        running.add(broadcast.id)
        await asyncio.sleep(0.2)
        running.remove(broadcast.id)
        return Ending.COMPLETED

    messages = [message(name, group=name[0], room=name[0]) for name in ("a1", "a2", "b1", "a3")]
    fixture = ConsumerFixture(handle, *messages, fifo=True)
    fixture.run()
    assert [name for name in fixture.broadcaster.started if name[0] == "a"] == ["a1", "a2", "a3"]
    assert sorted(fixture.queue.deleted) == ["a1", "a2", "a3", "b1"]


def test_if_a_message_of_a_fifo_group_is_released_those_behind_it_are_released_before_it() -> None:
    async def handle(broadcast: Broadcast, _lease: Lease) -> Ending:
        return Ending.COMPLETED if broadcast.id == "a1" else Ending.RELEASED

    messages = [message(name, group="a") for name in ("a1", "a2", "a3", "a4")]
    fixture = ConsumerFixture(handle, *messages, fifo=True)
    fixture.run()
    assert fixture.broadcaster.started == ["a1", "a2"]
    assert fixture.queue.deleted == ["a1"]
    assert fixture.queue.visibility == [("a4", 0), ("a3", 0), ("a2", 0)]
