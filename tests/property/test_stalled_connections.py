"""Connections that do not read delay no other; they receive everything in order when they read again, or are closed.

The real worker in virtual time (`tests.simulation`): streams of broadcasts to rooms with stuck clients, beside a room
that has none.
"""

import asyncio
import random

import pytest

from gatecast import Broadcast, decode
from tests.simulated_streams import CHAT, HONEST, Streams, is_stuck, percentile, stuck_ids, world_with
from tests.simulation import SimulatedWorker, World, make_members, run, until_empty
from worker.decisions.stall import MAX_CLOSING_BURST


@pytest.mark.parametrize(("stuck", "per_second"), [(1, 3), (1, 20), (100, 10), (400, 2)])
def test_stuck_clients_delay_no_other_and_are_closed(stuck: int, per_second: float) -> None:
    bad = stuck_ids(stuck)
    world = world_with({"chat": CHAT + bad, "honest": HONEST}, lambda each, _: 429 if is_stuck(each) else 200)
    streams = Streams(world)
    limits: list[float] = []

    async def simulation() -> None:
        worker = SimulatedWorker(world, max_posts_per_second=2_000)
        await asyncio.sleep(2)

        async def sample() -> None:
            while True:
                await asyncio.sleep(0.25)
                limits.append(worker.real_worker.engine.rate.limit)

        sampling = asyncio.create_task(sample())
        await asyncio.gather(
            streams.publish_for("chat", per_second=per_second, seconds=60),
            streams.publish_for("honest", per_second=10, seconds=60),
        )
        assert set(world.closed) == set(bad)
        await until_empty(world)
        sampling.cancel()
        await worker.terminate()

    run(simulation())
    assert streams.all_received("honest", HONEST)
    assert streams.all_received("chat", CHAT)
    assert percentile(streams.latencies(HONEST), 0.99) < 1
    assert not any(world.received.get(each) for each in bad)
    assert min(limits[8:]) >= 0.9 * 2_000
    missed = streams.missed()
    for each in bad:  # missed once each until it was closed; gone after that
        assert len(missed[each]) == len(set(missed[each])) >= 20 * per_second
        assert set(missed[each]) <= streams.names("chat")
        assert world.posts[each] <= 25


def test_stuck_clients_that_recover_receive_everything_in_order() -> None:
    bad = stuck_ids(50)
    world = world_with({"chat": CHAT + bad}, lambda _each, _nth: 200)
    world.respond = lambda each, _: 429 if is_stuck(each) and 5 < world.now() < 20 else 200
    streams = Streams(world)

    async def simulation() -> None:
        worker = SimulatedWorker(world)
        await streams.publish_for("chat", per_second=2, seconds=40)
        await until_empty(world)
        assert not worker.real_worker.engine.stalled_connections
        await worker.terminate()

    run(simulation())
    assert streams.all_received("chat", CHAT + bad)
    assert not world.dead_letters
    assert not world.closed
    waited = [name for name, at in streams.published_at.items() if 6 < at < 19]
    for each in bad:
        assert [name for name in streams.received(each) if name in waited] == waited


def test_a_client_that_reads_more_slowly_than_messages_are_published_is_given_up() -> None:
    """It accepts one message every four seconds, and is sent five per second."""
    world = world_with({"chat": (*CHAT, "stuck")}, lambda _each, _nth: 200)
    accepted_at = [0.0]

    def respond(each: str, _nth: int) -> int:
        if not is_stuck(each):
            return 200
        if world.now() - accepted_at[0] < 4:
            return 429
        accepted_at[0] = world.now()
        return 200

    world.respond = respond
    streams = Streams(world)

    async def simulation() -> None:
        worker = SimulatedWorker(world)
        await streams.publish_for("chat", per_second=5, seconds=240)
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert world.closed == {"stuck": 1}
    assert streams.all_received("chat", CHAT)
    missed = streams.missed()["stuck"]
    assert not set(missed) & set(streams.received("stuck"))
    assert percentile(streams.latencies(CHAT), 0.99) < 1


def test_kept_slow_clients_miss_at_once_and_receive_again_when_they_read() -> None:
    world = world_with({"chat": (*CHAT, "stuck")}, lambda _each, _nth: 200)
    world.respond = lambda each, _: 429 if is_stuck(each) and world.now() < 150 else 200
    streams = Streams(world)

    async def simulation() -> None:
        worker = SimulatedWorker(world, slow_clients="keep")
        await streams.publish_for("chat", per_second=2, seconds=240)
        await until_empty(world)
        await worker.terminate()
        assert worker.metrics.slow_clients == {"closed": 0, "kept": 1, "failed": 0}

    run(simulation())
    assert not world.closed
    missed, received = streams.missed()["stuck"], streams.received("stuck")
    assert sorted(missed + received) == sorted(streams.names("chat"))
    assert streams.published_at[received[0]] < 150 + 45
    assert world.posts["stuck"] < len(received) + 25
    assert percentile(streams.latencies(CHAT), 0.99) < 1


@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
def test_a_throttling_account_closes_no_connection_and_misses_no_member(share: float) -> None:
    members = make_members(500)
    world = World(members, rng=random.Random(1))
    jitter = random.Random(2)

    def throttled() -> bool:
        return world.now() < 180 and jitter.random() < share

    world.respond = lambda _each, _nth: 429 if throttled() else 200
    world.reference_status = lambda: 429 if throttled() else 410

    async def simulation() -> None:
        worker = SimulatedWorker(world)
        for number in range(6):
            world.publish(Broadcast(id=f"b{number}", room="room", data="x"))
            await asyncio.sleep(30)
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert world.delivered == dict.fromkeys(members, 6)
    assert not world.closed
    assert not world.dead_letters


def test_the_number_of_closes_is_bounded() -> None:
    """Closing too few is better than closing all by mistake; the deliveries to the others are missed nevertheless."""
    bad = stuck_ids(MAX_CLOSING_BURST + 300)
    world = world_with({"chat": CHAT + bad}, lambda each, _: 429 if is_stuck(each) else 200)
    streams = Streams(world)

    async def simulation() -> None:
        worker = SimulatedWorker(world)
        await streams.publish_for("chat", per_second=1, seconds=45)
        await until_empty(world)
        await worker.terminate()
        assert worker.metrics.slow_clients["kept"] > 0

    run(simulation())
    assert MAX_CLOSING_BURST <= len(world.closed) < len(bad)
    assert streams.all_received("chat", CHAT)
    assert set(streams.missed()) == set(bad)


@pytest.mark.parametrize("stop", ["terminate", "kill"])
@pytest.mark.parametrize("moment", [0.3, 5.0, 20.0, 33.0, 36.0])
def test_a_stop_or_a_kill_loses_no_delivery_that_waits_in_line(stop: str, moment: float) -> None:
    bad = stuck_ids(5)
    world = world_with({"chat": CHAT + bad}, lambda each, _: 429 if is_stuck(each) else 200)
    streams = Streams(world)

    async def simulation() -> None:
        for number in range(5):
            streams.publish("chat", number)
        worker = SimulatedWorker(world)
        await asyncio.sleep(moment)
        await getattr(worker, stop)()
        worker = SimulatedWorker(world)
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    missed = streams.missed()
    for each in bad:
        assert set(missed.get(each, ())) == streams.names("chat") or each in world.closed
    for each in CHAT:
        assert set(streams.received(each)) == streams.names("chat")
        assert stop == "kill" or streams.all_received("chat", [each])


def test_deliveries_beyond_the_parking_limit_become_remainders_and_are_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.pipeline.capacity.MAX_PARKED", 10)
    bad = stuck_ids(3)
    world = world_with({"chat": CHAT + bad, "honest": HONEST}, lambda each, _: 429 if is_stuck(each) else 200)
    streams = Streams(world)

    async def simulation() -> None:
        worker = SimulatedWorker(world, slow_clients="keep")
        await asyncio.gather(
            streams.publish_for("chat", per_second=5, seconds=60),
            streams.publish_for("honest", per_second=5, seconds=60),
        )
        await until_empty(world)
        await worker.terminate()
        assert worker.metrics.remainders > 50

    run(simulation())
    missed = streams.missed()
    for each in bad:
        assert sorted(missed[each]) == sorted(streams.names("chat"))
    assert streams.all_received("chat", CHAT)
    assert streams.all_received("honest", HONEST)
    assert percentile(streams.latencies(HONEST), 0.99) < 1


def test_a_remainder_carries_the_retry_history_of_its_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that park nothing reach the give-up limit together."""
    monkeypatch.setattr("worker.pipeline.capacity.MAX_PARKED", 0)
    world = world_with({"chat": (*CHAT, "stuck")}, lambda each, _: 429 if is_stuck(each) else 200)
    streams = Streams(world)
    probes: list[int] = []

    async def simulation() -> None:
        streams.publish("chat", 0)
        while world.messages:
            worker = SimulatedWorker(world)
            await asyncio.sleep(20)
            await worker.terminate()
            probes.extend(found.tried[0] for each in world.messages if (found := decode(each.body)).tried)
            assert world.now() < 7_200

    run(simulation())
    assert probes
    assert probes == sorted(probes)
    assert probes[-1] > probes[0]
    assert streams.missed() == {"stuck": ["chat-0"]}
    assert streams.all_received("chat", CHAT)


def test_on_a_fifo_queue_stuck_clients_of_many_rooms_delay_no_other_room() -> None:
    rooms = {f"room{number}": (f"r{number}a", f"r{number}b", f"stuck{number}") for number in range(70)}
    world = world_with({**rooms, "honest": HONEST}, lambda each, _: 429 if is_stuck(each) else 200, fifo=True)
    streams = Streams(world)

    async def simulation() -> None:
        worker = SimulatedWorker(world)
        for room in rooms:
            for number in range(10):
                streams.publish(room, number)
        await streams.publish_for("honest", per_second=1, seconds=120)
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert streams.all_received("honest", HONEST)
    assert percentile(streams.latencies(HONEST), 0.99) < 1
    for room, members in rooms.items():
        for member in members[:2]:
            assert streams.received(member) == [f"{room}-{number}" for number in range(10)]


def test_a_large_room_with_slow_members_makes_progress_every_second() -> None:
    members = make_members(20_000)
    slow = set(random.Random(5).sample(sorted(members), 600))
    world = World(dict(members), respond=lambda each, _: 429 if each in slow else 200, rng=random.Random(1))

    async def simulation() -> None:
        worker = SimulatedWorker(world, max_posts_per_second=400, slow_clients="keep")
        world.publish(Broadcast(id="one", room="room", data="x"))
        await asyncio.sleep(3)
        while len(world.delivered) < len(members) - len(slow):
            before = len(world.delivered)
            await asyncio.sleep(1)
            assert len(world.delivered) > before
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    missed = [each for letter in world.dead_letters for each in decode(letter.body).connections or ()]
    assert sorted(missed) == sorted(slow)


def test_one_wrong_id_in_a_quiet_system_is_rejected_soon_without_a_problem() -> None:
    world = World(make_members(3), respond=lambda each, _: 400 if each == "bogus!!" else 200)

    async def simulation() -> None:
        worker = SimulatedWorker(world)
        await asyncio.sleep(1)
        world.publish(Broadcast(id="bad", connections=("bogus!!",), data="x"))
        for _ in range(50):
            await asyncio.sleep(0.2)
            assert not worker.health.problems
        assert not world.messages
        await worker.terminate()

    run(simulation())
    [letter] = world.dead_letters
    assert decode(letter.body).connections == ("bogus!!",)


def test_if_the_reference_post_fails_too_the_endpoint_is_failing() -> None:
    world = World(make_members(1), respond=lambda _each, _nth: 403)
    world.reference_status = lambda: 403

    async def simulation() -> None:
        worker = SimulatedWorker(world)
        await asyncio.sleep(1)
        world.publish(Broadcast(id="one", room="room", data="x"))
        await asyncio.sleep(30)
        assert "connections" in worker.health.problems
        assert not world.dead_letters
        world.respond = lambda _each, _nth: 200
        world.reference_status = lambda: 410
        await until_empty(world)
        assert not worker.health.problems
        await worker.terminate()

    run(simulation())
    assert set(world.delivered.values()) == {1}


@pytest.mark.parametrize("status", [503, 403, None])
def test_a_429_before_failures_of_another_kind_leaves_no_endless_line(status: int | None) -> None:
    """Deliveries that fail for another reason than a full buffer leave the line and are retried individually."""
    world = world_with(
        {"chat": (*CHAT, "stuck")}, lambda each, nth: (429 if nth == 1 else status) if is_stuck(each) else 200
    )
    streams = Streams(world)
    parked: list[int] = []

    async def simulation() -> None:
        worker = SimulatedWorker(world)

        async def sample() -> None:
            while True:
                await asyncio.sleep(1)
                parked.append(worker.real_worker._capacity.parked)

        sampling = asyncio.create_task(sample())
        await streams.publish_for("chat", per_second=3, seconds=240)
        await until_empty(world)
        sampling.cancel()
        await worker.terminate()

    run(simulation())
    assert streams.all_received("chat", CHAT)
    assert sorted(streams.missed()["stuck"]) == sorted(streams.names("chat"))
    assert max(parked) < 3 * 60


def test_one_429_on_a_fast_connection_leaves_no_growing_line() -> None:
    """More than one message is published per round trip: the line must catch up nevertheless."""
    world = world_with({"chat": (*CHAT, "stuck")}, lambda each, nth: 429 if is_stuck(each) and nth == 50 else 200)
    world.latency = lambda: 0.06
    world.poll_seconds = 0.02
    streams = Streams(world)
    lines: list[int] = []

    async def simulation() -> None:
        worker = SimulatedWorker(world)

        async def sample() -> None:
            while True:
                await asyncio.sleep(0.5)
                lines.append(sum(len(record.line) for record in worker.real_worker.engine._slow.records.values()))

        sampling = asyncio.create_task(sample())
        await streams.publish_for("chat", per_second=25, seconds=30)
        await until_empty(world)
        sampling.cancel()
        await worker.terminate()

    run(simulation())
    assert streams.all_received("chat", (*CHAT, "stuck"))
    assert max(lines) < 25
    assert lines[10:].count(0) > len(lines) / 2


def test_deliveries_behind_a_410_of_a_young_connection_do_not_make_it_old() -> None:
    world = World(make_members(5), rng=random.Random(1))
    world.respond = lambda each, nth: 200 if each != "young" else 429 if nth == 1 else 410

    async def simulation() -> None:
        worker = SimulatedWorker(world)
        world.publish(Broadcast(id="before", room="room", data="x"))
        await asyncio.sleep(2)
        world.add_members("room", {"young": int(world.wall_clock() * 1000)})
        world.publish(Broadcast(id="a", room="room", data="x"))
        await asyncio.sleep(0.05)
        world.publish(Broadcast(id="b", connections=("young",), data="x"))
        for number in range(24):
            await asyncio.sleep(1)
            world.publish(Broadcast(id=f"c{number}", connections=("c000000=",), data="x"))
        assert "young" not in world.removed
        await until_empty(world)
        await worker.terminate()

    run(simulation())


def test_a_stuck_member_with_an_id_that_no_broadcast_can_name_is_not_handed_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.pipeline.capacity.MAX_PARKED", 0)
    unnameable = "stuck" + "x" * 200
    world = world_with({"chat": (*CHAT, "stuck", unnameable)}, lambda each, _: 429 if is_stuck(each) else 200)
    streams = Streams(world)

    async def simulation() -> None:
        worker = SimulatedWorker(world)
        streams.publish("chat", 0)
        await until_empty(world)
        await worker.terminate()
        assert worker.metrics.damaged_items["membership"] == 1

    run(simulation())
    assert streams.missed() == {"stuck": ["chat-0"]}
    assert set(world.closed) == {"stuck", unnameable}
