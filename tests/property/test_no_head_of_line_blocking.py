"""Failing, hanging and waiting calls block neither checkpoints nor a stop nor other broadcasts. In virtual time."""

import asyncio
import random

import pytest

from gatecast import Broadcast
from gatecast.broadcast import MAX_BODY_BYTES, encode
from tests.simulation import CONNECTIONS, EPOCH, SimulatedWorker, World, make_members, run, until_empty
from worker.decisions.checkpoint import WINDOW

STOPS = pytest.mark.parametrize("stop", ["terminate", "kill"])


def repeats(world: World) -> int:
    return world.delivered.total() - len(world.delivered)


async def another_finishes(world: World, worker: SimulatedWorker, stop: str) -> None:
    """Stop the worker, which must not take much longer than its responses; another one finishes the broadcast."""
    stopped_at = world.now()
    await getattr(worker, stop)()
    assert world.now() - stopped_at < 15
    world.broken.clear()
    worker = SimulatedWorker(world)
    await until_empty(world)
    await worker.terminate()


@STOPS
def test_a_dead_letter_queue_that_is_down(stop: str) -> None:
    world = World(make_members(900), respond=lambda each, _: 413 if each == "c000000=" else 200)

    async def simulation() -> None:
        world.broken.add("dead letters")
        world.publish(Broadcast(id="one", room="room", data="x"))
        worker = SimulatedWorker(world)
        await asyncio.sleep(60)
        assert len(world.delivered) == 899
        await another_finishes(world, worker, stop)

    run(simulation())
    assert repeats(world) == 0
    assert len(world.dead_letters) == 1


def test_a_dead_letter_that_is_rejected() -> None:
    """Its broadcast stays on the queue and resumes where it stopped."""
    world = World(make_members(900), respond=lambda each, _: 413 if each == "c000000=" else 200)

    async def simulation() -> None:
        world.broken.add("letters rejected")
        world.publish(Broadcast(id="one", room="room", data="x"))
        worker = SimulatedWorker(world)
        await asyncio.sleep(200)
        assert world.messages[0].receive_count > 3
        await another_finishes(world, worker, "terminate")

    run(simulation())
    assert repeats(world) == 0
    assert len(world.delivered) == 899
    assert len(world.dead_letters) == 1


@STOPS
def test_a_remainder_that_cannot_be_sent(stop: str) -> None:
    world = World(make_members(3_000), respond=lambda each, _: 429 if int(each[1:7]) % 5 == 0 else 200)

    async def simulation() -> None:
        world.broken.add("send")
        world.publish(Broadcast(id="one", room="room", data="x"))
        worker = SimulatedWorker(world)
        await asyncio.sleep(120)
        assert len(world.delivered) > 1_000
        await another_finishes(world, worker, stop)

    run(simulation())
    assert repeats(world) == 0
    assert len(world.delivered) == 2_400


def test_a_stop_while_pages_cannot_be_read() -> None:
    """Members that an earlier worker had started are delivered meanwhile."""
    status = 503
    world = World(make_members(3_000), respond=lambda _each, _nth: status)

    async def simulation() -> None:
        nonlocal status
        world.publish(Broadcast(id="one", room="room", data="x"))
        worker = SimulatedWorker(world)
        await asyncio.sleep(3)
        await worker.terminate()
        status = 200
        world.broken.add("page")
        worker = SimulatedWorker(world)
        await asyncio.sleep(60)
        assert world.delivered
        await another_finishes(world, worker, "terminate")

    run(simulation())
    assert repeats(world) == 0
    assert len(world.delivered) == 3_000


@STOPS
def test_a_room_that_gets_more_shards_during_a_broadcast(stop: str) -> None:
    """A broadcast that started on one shard continues there: parts would start from the beginning."""
    world = World(make_members(20_000))

    async def simulation() -> None:
        world.publish(Broadcast(id="one", room="room", data="x"))
        worker = SimulatedWorker(world)
        await asyncio.sleep(2.5)
        assert 5_000 < len(world.delivered) < 20_000
        world.set_shards("room", 2)
        await another_finishes(world, worker, stop)

    run(simulation())
    assert len(world.delivered) == 20_000
    assert repeats(world) <= (0 if stop == "terminate" else WINDOW + CONNECTIONS)


def test_responses_may_take_nearly_all_of_a_drain() -> None:
    world = World(make_members(5), latency=lambda: 4.0)

    async def simulation() -> None:
        world.publish(Broadcast(id="one", room="room", data="x"))
        worker = SimulatedWorker(world, drain_seconds=5)
        await asyncio.sleep(0.7)
        assert len(world.posts) == 5
        await another_finishes(world, worker, "terminate")

    run(simulation())
    assert repeats(world) == 0


def test_a_rejected_member_does_not_keep_a_broadcast_from_parking() -> None:
    statuses = {"c000000=": 429, "c000001=": 413}
    world = World(make_members(50), respond=lambda each, _: statuses.get(each, 200), rng=random.Random(1))

    async def simulation() -> None:
        world.publish(Broadcast(id="one", room="room", data="x"))
        worker = SimulatedWorker(world, max_broadcasts=1)
        await asyncio.sleep(0.5)
        world.publish(Broadcast(id="two", connections=("another",), data="x"))
        await asyncio.sleep(5)
        assert "another" in world.delivered
        await worker.kill()

    run(simulation())


def test_a_room_whose_first_members_all_fail() -> None:
    """It looks as if the endpoint failed for every connection, until the probes reach one that works."""
    world = World(make_members(400), respond=lambda each, _: 500 if each < "c000300=" else 200)

    async def simulation() -> None:
        world.publish(Broadcast(id="one", room="room", data="x"))
        worker = SimulatedWorker(world)
        await asyncio.sleep(20)
        assert len(world.delivered) == 100
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert repeats(world) == 0


def test_late_403s_after_an_endpoint_outage_reject_no_member() -> None:
    """Some 403 responses arrive after the first success."""
    rng = random.Random(1)
    world = World(make_members(600), latency=lambda: rng.uniform(0.02, 2.0), rng=rng)
    world.respond = lambda _each, _nth: 403 if 50 < world.now() < 110 else 200
    world.reference_status = lambda: 403 if 50 < world.now() < 110 else 410

    async def simulation() -> None:
        world.publish(Broadcast(id="before", room="room", data="x"))
        worker = SimulatedWorker(world)
        await asyncio.sleep(55)
        world.publish(Broadcast(id="one", room="room", data="x"))
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert not world.dead_letters
    assert world.delivered == dict.fromkeys(world.members, 2)


def test_one_failing_client_does_not_make_the_worker_unready() -> None:
    world = World(make_members(2), respond=lambda each, _: 500 if each == "c000000=" else 200)

    async def simulation() -> None:
        worker = SimulatedWorker(world)
        await asyncio.sleep(1)
        world.publish(Broadcast(id="one", room="room", data="x"))
        while world.messages:
            await asyncio.sleep(0.2)
            assert not worker.health.problems
        await worker.terminate()

    run(simulation())
    assert len(world.dead_letters) == 1


def test_a_stop_does_not_count_as_progress() -> None:
    """A broadcast that reaches no member ends as a dead letter, even if its workers stop gracefully."""
    world = World(make_members(3), respond=lambda _each, _nth: 500)

    async def simulation() -> None:
        world.publish(Broadcast(id="one", room="room", data="x"))
        for _ in range(101):
            worker = SimulatedWorker(world)
            await asyncio.sleep(2)
            await worker.terminate()
            await asyncio.sleep(1)

    run(simulation())
    assert len(world.dead_letters) == 1
    assert not world.messages


def test_a_broadcast_not_claimed_within_100_receives_is_dead_lettered() -> None:
    world = World(make_members(3))

    async def simulation() -> None:
        world.publish(Broadcast(id="one", room="room", data="x"))
        world.messages[0].receive_count = 100
        worker = SimulatedWorker(world)
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert len(world.dead_letters) == 1
    assert not world.delivered


def test_the_longest_broadcast_to_a_room_of_shards() -> None:
    broadcast = Broadcast(id="one", room="room", data="x", except_=("",))
    broadcast = Broadcast(
        id="one", room="room", data="x", except_=("x" * (MAX_BODY_BYTES - len(encode(broadcast).encode())),)
    )
    world = World(make_members(3))
    world.set_shards("room", 2)

    async def simulation() -> None:
        world.publish(broadcast)
        worker = SimulatedWorker(world)
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert len(world.delivered) == 3


def test_excepted_members_do_not_count_as_expired() -> None:
    members = make_members(100)
    world = World(members, latency=lambda: 5.0)

    async def simulation() -> None:
        excepted, expires_at_ms = tuple(members)[-30:], int((EPOCH + 2) * 1000)
        world.publish(Broadcast(id="one", room="room", data="x", except_=excepted, expires_at_ms=expires_at_ms))
        worker = SimulatedWorker(world)
        await until_empty(world)
        await worker.terminate()
        assert sum(worker.metrics.deliveries.values()) == 70

    run(simulation())
