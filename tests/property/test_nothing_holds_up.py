"""What fails, hangs or waits holds up neither checkpoints nor a stop, nor other broadcasts. In virtual time."""

import asyncio
import random

import pytest

from gatecast import Broadcast
from gatecast.broadcast import MAX_BODY_BYTES, encode
from tests.simulation import CONNECTIONS, EPOCH, SimulatedWorker, World, members_of, run, until_empty
from worker.decisions.checkpoint import WINDOW

STOPS = pytest.mark.parametrize("stop", ["terminate", "kill"])


def repeats(world: World) -> int:
    return world.delivered.total() - len(world.delivered)


async def another_finishes(world: World, worker: SimulatedWorker, stop: str) -> None:
    """The worker stops, without waiting much longer than for answers, and another one takes over."""
    stopped_at = world.now()
    await getattr(worker, stop)()
    assert world.now() - stopped_at < 15
    world.broken.clear()
    worker = SimulatedWorker(world)
    await until_empty(world)
    await worker.terminate()


@STOPS
def test_a_dead_letter_queue_that_is_down(stop: str) -> None:
    world = World(members_of(900), answer=lambda each, _: 413 if each == "c000000=" else 200)

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


def test_a_dead_letter_that_is_refused() -> None:
    """Its broadcast stays on the queue, and goes on from where it was."""
    world = World(members_of(900), answer=lambda each, _: 413 if each == "c000000=" else 200)

    async def simulation() -> None:
        world.broken.add("letters refused")
        world.publish(Broadcast(id="one", room="room", data="x"))
        worker = SimulatedWorker(world)
        await asyncio.sleep(200)
        assert world.messages[0].receives > 3
        await another_finishes(world, worker, "terminate")

    run(simulation())
    assert repeats(world) == 0
    assert len(world.delivered) == 899
    assert len(world.dead_letters) == 1


@STOPS
def test_a_remainder_that_cannot_be_sent(stop: str) -> None:
    world = World(members_of(3_000), answer=lambda each, _: 429 if int(each[1:7]) % 5 == 0 else 200)

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
    """Members that an earlier worker had taken up are delivered meanwhile."""
    answers = 503
    world = World(members_of(3_000), answer=lambda _each, _nth: answers)

    async def simulation() -> None:
        nonlocal answers
        world.publish(Broadcast(id="one", room="room", data="x"))
        worker = SimulatedWorker(world)
        await asyncio.sleep(3)
        await worker.terminate()
        answers = 200
        world.broken.add("page")
        worker = SimulatedWorker(world)
        await asyncio.sleep(60)
        assert world.delivered
        await another_finishes(world, worker, "terminate")

    run(simulation())
    assert repeats(world) == 0
    assert len(world.delivered) == 3_000


@STOPS
def test_a_room_that_gets_more_shards_meanwhile(stop: str) -> None:
    """What was begun on one shard goes on there: parts would begin anew."""
    world = World(members_of(20_000))

    async def simulation() -> None:
        world.publish(Broadcast(id="one", room="room", data="x"))
        worker = SimulatedWorker(world)
        await asyncio.sleep(2.5)
        assert 5_000 < len(world.delivered) < 20_000
        world.shards = 2
        await another_finishes(world, worker, stop)

    run(simulation())
    assert len(world.delivered) == 20_000
    assert repeats(world) <= (0 if stop == "terminate" else WINDOW + CONNECTIONS)


def test_answers_may_take_nearly_all_of_a_drain() -> None:
    world = World(members_of(5), latency=lambda: 4.0)

    async def simulation() -> None:
        world.publish(Broadcast(id="one", room="room", data="x"))
        worker = SimulatedWorker(world, drain_seconds=5)
        await asyncio.sleep(0.7)
        assert len(world.posts) == 5
        await another_finishes(world, worker, "terminate")

    run(simulation())
    assert repeats(world) == 0


def test_a_rejected_member_does_not_keep_a_slow_one_from_making_room() -> None:
    answers = {"c000000=": 429, "c000001=": 413}
    world = World(members_of(50), answer=lambda each, _: answers.get(each, 200), rng=random.Random(1))

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
    """They look as if the endpoint failed for all, until the probes come to one that does not."""
    world = World(members_of(400), answer=lambda each, _: 500 if each < "c000300=" else 200)

    async def simulation() -> None:
        world.publish(Broadcast(id="one", room="room", data="x"))
        worker = SimulatedWorker(world)
        await asyncio.sleep(20)
        assert len(world.delivered) == 100
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert repeats(world) == 0


def test_when_403_for_all_ends_late_answers_reject_nobody() -> None:
    """Some that were refused before answer after the first that succeeded."""
    rng = random.Random(1)
    world = World(members_of(600), latency=lambda: rng.uniform(0.02, 2.0), rng=rng)
    world.answer = lambda _each, _nth: 403 if 50 < world.now() < 110 else 200
    world.made_up = lambda: 403 if 50 < world.now() < 110 else 410

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


def test_one_client_that_fails_makes_no_worker_unready() -> None:
    world = World(members_of(2), answer=lambda each, _: 500 if each == "c000000=" else 200)

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


def test_a_stop_is_no_progress() -> None:
    """A broadcast that nobody can be reached by ends as a dead letter, however gently its workers end."""
    world = World(members_of(3), answer=lambda _each, _nth: 500)

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


def test_what_nobody_claimed_in_a_hundred_receives_is_a_dead_letter() -> None:
    world = World(members_of(3))

    async def simulation() -> None:
        world.publish(Broadcast(id="one", room="room", data="x"))
        world.messages[0].receives = 100
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
    world = World(members_of(3), shards=2)

    async def simulation() -> None:
        world.publish(broadcast)
        worker = SimulatedWorker(world)
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert len(world.delivered) == 3


def test_those_who_are_left_out_do_not_expire() -> None:
    members = members_of(100)
    world = World(members, latency=lambda: 5.0)

    async def simulation() -> None:
        left_out, expires_at_ms = tuple(members)[-30:], int((EPOCH + 2) * 1000)
        world.publish(Broadcast(id="one", room="room", data="x", except_=left_out, expires_at_ms=expires_at_ms))
        worker = SimulatedWorker(world)
        await until_empty(world)
        await worker.terminate()
        assert sum(worker.metrics.deliveries.values()) == 70

    run(simulation())
