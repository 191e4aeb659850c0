"""Completed broadcasts are not posted again, and unfinished ones are resumed, even under another message id.

The real worker in virtual time (`tests.simulation`).
"""

import asyncio
import random

import pytest

from gatecast import Broadcast, decode
from tests.memory_stores import ProgressItem, progress_key
from tests.simulation import SimulatedWorker, World, make_members, run, until_empty
from worker.decisions.claims import ABANDONED_SECONDS

BROADCAST = Broadcast(id="one", room="room", data="x")


def repeats(world: World) -> int:
    return world.delivered.total() - len(world.delivered)


def publish_rooms(world: World, rooms: int) -> None:
    for room in range(rooms):
        world.add_members(f"room{room}", [f"r{room}-{each}" for each in range(300)])
        world.publish(Broadcast(id="one", room=f"room{room}", data="x"))


@pytest.mark.parametrize("stop", ["terminate", "kill"])
def test_a_completed_broadcast_whose_message_cannot_be_deleted_is_not_posted_again(stop: str) -> None:
    world = World({}, rng=random.Random(1))

    async def simulation() -> None:
        publish_rooms(world, 20)
        worker = SimulatedWorker(world)
        await asyncio.sleep(0.05)
        world.broken.add("delete")
        await asyncio.sleep(5)
        assert len(world.delivered) == 6_000
        assert world.messages
        await getattr(worker, stop)()
        world.broken.clear()
        worker = SimulatedWorker(world)
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert repeats(world) == 0


def test_a_queue_that_is_down_for_longer_than_a_lease_repeats_nothing() -> None:
    world = World({}, rng=random.Random(2))

    async def simulation() -> None:
        publish_rooms(world, 4)
        worker = SimulatedWorker(world)
        await asyncio.sleep(0.1)
        world.broken.update({"queue", "lease", "delete"})
        await asyncio.sleep(45)
        assert len(world.delivered) == 1_200
        world.broken.clear()
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert repeats(world) == 0


def test_a_deletion_that_only_seems_to_succeed() -> None:
    """A standard queue accepts a superseded receipt handle and deletes nothing: the message is redelivered."""
    world = World(make_members(5), rng=random.Random(3))

    async def simulation() -> None:
        world.publish(Broadcast(id="one", room="room", data="x"))
        message = world.messages[0]
        worker = SimulatedWorker(world)
        await asyncio.sleep(2)
        assert not world.messages
        message.visible_at = world.now()
        world.messages.append(message)
        await until_empty(world)
        await worker.terminate()
        assert worker.metrics.broadcasts["duplicate"] == 1

    run(simulation())
    assert world.delivered == dict.fromkeys(world.members, 1)


@pytest.mark.parametrize("after", [1.0, ABANDONED_SECONDS + 60.0, 3_600.0])
def test_a_message_redriven_under_another_id_resumes_from_its_checkpoint(after: float) -> None:
    """SQS gives a message that it moves to the dead-letter queue and back a new id and a new receive count."""
    world = World(make_members(3_000), rng=random.Random(4))

    async def simulation() -> None:
        world.publish(Broadcast(id="one", room="room", data="x"))
        worker = SimulatedWorker(world)
        await asyncio.sleep(0.3)
        await worker.kill()
        [moved] = world.messages
        assert 0 < len(world.delivered) < 3_000
        world.messages.clear()
        await asyncio.sleep(after)
        world.publish(decode(moved.body))
        worker = SimulatedWorker(world)
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert set(world.delivered) == set(world.members)
    assert repeats(world) <= 1_064


def test_an_id_published_twice_is_delivered_once_even_if_the_first_takes_long() -> None:
    world = World(make_members(20_000), rng=random.Random(5))

    async def simulation() -> None:
        world.publish(Broadcast(id="one", room="room", data="x"))
        workers = [SimulatedWorker(world, max_posts_per_second=500), SimulatedWorker(world, max_posts_per_second=500)]
        await asyncio.sleep(1)
        world.publish(Broadcast(id="one", room="room", data="x"))
        await until_empty(world)
        for worker in workers:
            await worker.terminate()
        assert sum(worker.metrics.broadcasts["duplicate"] for worker in workers) == 1

    run(simulation())
    assert world.delivered == dict.fromkeys(world.members, 1)


def test_a_broadcast_that_waits_long_does_not_count_as_abandoned() -> None:
    """The account throttles every post for an hour: a second message with the same id waits as long."""
    world = World(make_members(20), rng=random.Random(6))
    world.respond = lambda _each, _nth: 429 if world.now() < 3_600 else 200
    world.reference_status = lambda: 429 if world.now() < 3_600 else 410

    async def simulation() -> None:
        world.publish(Broadcast(id="one", room="room", data="x"))
        workers = [SimulatedWorker(world), SimulatedWorker(world)]
        await asyncio.sleep(10)
        world.publish(Broadcast(id="one", room="room", data="x"))
        await until_empty(world)
        for worker in workers:
            await worker.terminate()

    run(simulation())
    assert world.delivered == dict.fromkeys(world.members, 1)


def test_a_damaged_progress_item_becomes_a_dead_letter_that_can_be_sent_again() -> None:
    world = World(make_members(5), rng=random.Random(7))
    world.progress[progress_key(BROADCAST)] = ProgressItem(unreadable_claims=100)

    async def simulation() -> None:
        world.publish(BROADCAST)
        worker = SimulatedWorker(world)
        await until_empty(world)
        assert not world.delivered
        assert worker.metrics.damaged_items["progress"] == 1
        assert not worker.health.problems
        [letter] = world.dead_letters
        world.publish(decode(letter.body))
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert world.delivered == dict.fromkeys(world.members, 1)


def test_a_progress_item_that_is_unreadable_only_briefly_is_not_damaged() -> None:
    world = World(make_members(5), rng=random.Random(7))
    world.progress[progress_key(BROADCAST)] = ProgressItem(unreadable_claims=2)

    async def simulation() -> None:
        world.publish(BROADCAST)
        worker = SimulatedWorker(world)
        await until_empty(world)
        await worker.terminate()
        assert not worker.metrics.damaged_items["progress"]

    run(simulation())
    assert not world.dead_letters
    assert world.delivered == dict.fromkeys(world.members, 1)


def test_two_messages_with_one_id_that_wait_for_the_same_page_deliver_once() -> None:
    """Nothing renews a claim while its first page cannot be read, so the other message takes the claim over."""
    world = World(make_members(5), rng=random.Random(8))

    async def simulation() -> None:
        world.publish(Broadcast(id="one", room="room", data="x"))
        world.broken.add("page")
        workers = [SimulatedWorker(world), SimulatedWorker(world)]
        await asyncio.sleep(60)
        world.publish(Broadcast(id="one", room="room", data="x"))
        await asyncio.sleep(3 * ABANDONED_SECONDS)
        world.broken.clear()
        await until_empty(world)
        for worker in workers:
            await worker.terminate()

    run(simulation())
    assert world.delivered == dict.fromkeys(world.members, 1)


def test_waiting_for_another_message_does_not_count_as_a_receive_without_progress() -> None:
    """Once the other claim is abandoned, the broadcast is delivered, however many receives it took."""
    world = World(make_members(3_000), rng=random.Random(9))

    async def simulation() -> None:
        world.publish(Broadcast(id="one", room="room", data="x"))
        worker = SimulatedWorker(world)
        await asyncio.sleep(0.3)
        await worker.kill()
        world.messages.clear()
        world.publish(Broadcast(id="one", room="room", data="x"))
        world.messages[0].receive_count = 150
        worker = SimulatedWorker(world)
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert not world.dead_letters
    assert set(world.delivered) == set(world.members)
