"""Under any sequence of faults every member is reached, none more often than needed, and every miss is a dead letter.

The real worker in virtual time (`tests.simulation`). Hypothesis chooses the room, the responses of its members, and
which faults hit the workers and when.
"""

import asyncio
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatecast import Broadcast, decode
from tests.simulation import CONNECTIONS, SimulatedWorker, World, apply_plan, make_members, run, until_empty
from worker.decisions.checkpoint import WINDOW

HARMLESS = ("terminate", "second worker", "published again", "moved back")
HARMFUL = ("kill", "queue", "table", "lease", "clock forward", "clock back", "handed out again")
EVENTS = st.sampled_from([*HARMFUL, *HARMLESS])
BROADCAST = Broadcast(id="one", room="room", data="x")
PLANS = st.lists(st.tuples(st.floats(0, 3), EVENTS), max_size=8)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    count=st.integers(1, 2_500),
    slow=st.sampled_from([0.0, 0.0, 0.02, 0.3]),
    gone=st.sampled_from([0.0, 0.1, 0.5]),
    flaky=st.sampled_from([0.0, 0.2]),
    plan=PLANS,
    honours_superseded=st.booleans(),
    seed=st.integers(0, 1_000_000),
)
def test_under_any_faults_every_member_is_reached_or_a_dead_letter(
    count: int,
    slow: float,
    gone: float,
    flaky: float,
    plan: list[tuple[float, str]],
    honours_superseded: bool,
    seed: int,
) -> None:
    rng = random.Random(seed)
    members = make_members(count)
    kinds = {member: rng.random() for member in members}
    slow_members = {member for member, kind in kinds.items() if kind < slow and member != "c000000="}
    gone_members = {member for member, kind in kinds.items() if kind > 1 - gone}

    def respond(connection_id: str, _nth: int) -> int | None:
        if connection_id in slow_members:
            return 429
        if connection_id in gone_members:
            return 410
        return rng.choice([503, None]) if rng.random() < flaky else 200

    world = World(dict(members), respond=respond, rng=random.Random(seed), honours_superseded=honours_superseded)
    reachable = set(members) - slow_members - gone_members
    disturbed = [event for _, event in plan if event not in HARMLESS]

    async def simulation() -> None:
        world.publish(BROADCAST)
        workers = await apply_plan(world, plan, republish=BROADCAST)
        await until_empty(world)
        for worker in workers:
            await worker.terminate()

    run(simulation())
    missed = {each for letter in world.dead_letters for each in decode(letter.body).connections or ()}
    assert reachable <= set(world.delivered)
    assert slow_members <= missed
    assert not missed & (set(world.delivered) | gone_members)
    repeated = sum(times - 1 for times in world.delivered.values())
    assert repeated <= len(disturbed) * (WINDOW + CONNECTIONS)
    if not disturbed:
        assert repeated == 0


def test_a_410_does_not_hide_that_no_post_succeeds() -> None:
    """A bad connection in every place, and a gone one among them: the failures are not all alike."""
    statuses = {"bad": 400, "gon": 410}
    world = World(make_members(5), respond=lambda each, _: statuses.get(each[:3], 200), rng=random.Random(5))
    named = [f"bad{number}" for number in range(63)] + ["gone", "bad64"]

    async def simulation() -> None:
        for connection_id in named:
            world.publish(Broadcast(id=connection_id, connections=(connection_id,), data="x"))
        worker = SimulatedWorker(world)
        await asyncio.sleep(30)
        world.publish(Broadcast(id="good", room="room", data="x"))
        await asyncio.sleep(300)
        await worker.kill()

    run(simulation())
    assert world.delivered == dict.fromkeys(world.members, 1)


def test_an_outage_dead_letters_nothing_on_a_fifo_queue() -> None:
    """Messages that wait behind others are released and received many times without being attempted."""
    down = True
    world = World(make_members(30), respond=lambda _id, _nth: 503 if down else 200, rng=random.Random(6), fifo=True)

    async def simulation() -> None:
        nonlocal down
        for number in range(10):
            world.publish(Broadcast(id=f"b{number}", room="room", data="x"))
            world.messages[-1].receive_count = 150
        for _ in range(10):
            worker = SimulatedWorker(world, max_broadcasts=10)
            await asyncio.sleep(60)
            await worker.terminate()
        worker = SimulatedWorker(world, max_broadcasts=10)
        assert max(message.receive_count for message in world.messages[1:]) > 151
        down = False
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert world.delivered == dict.fromkeys(world.members, 10)
    assert not world.dead_letters


def test_after_an_outage_no_problem_remains() -> None:
    world = World(make_members(3), rng=random.Random(7))

    async def simulation() -> None:
        worker = SimulatedWorker(world, visibility_seconds=5)
        for number in range(20):
            world.publish(Broadcast(id=f"b{number}", room="room", data="x"))
            if number == 5:
                world.broken.update({"queue", "table", "lease"})
            await asyncio.sleep(3)
        assert worker.health.problems
        world.broken.clear()
        await until_empty(world)
        await asyncio.sleep(30)
        assert not worker.health.problems
        await worker.terminate()

    run(simulation())


@pytest.mark.parametrize("moment", [0.01, 0.05, 0.1, 0.2, 0.35, 0.5, 0.8])
def test_each_kill_repeats_no_more_than_the_window_and_what_is_in_flight(moment: float) -> None:
    world = World(make_members(5_000), rng=random.Random(1))

    async def simulation() -> None:
        world.publish(Broadcast(id="one", room="room", data="x"))
        worker = SimulatedWorker(world)
        for _ in range(3):
            await asyncio.sleep(moment)
            await worker.kill()
            worker = SimulatedWorker(world)
            before = sum(world.delivered.values()) - len(world.delivered)
            await asyncio.sleep(31)
            assert sum(world.delivered.values()) - len(world.delivered) - before <= WINDOW + CONNECTIONS
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert set(world.delivered) == set(make_members(5_000))


@pytest.mark.parametrize("honours_superseded", [False, True])
def test_a_message_that_is_handed_out_twice_belongs_to_its_latest_receive(honours_superseded: bool) -> None:
    """Whether or not SQS honours superseded receipt handles: the earlier worker uses its own no more."""
    members = make_members(5_000)
    world = World(dict(members), latency=lambda: 0.05, rng=random.Random(8), honours_superseded=honours_superseded)

    async def simulation() -> None:
        world.publish(BROADCAST)
        [message] = world.messages
        workers = [SimulatedWorker(world) for _ in range(2)]
        for _ in range(3):
            await asyncio.sleep(1)
            world.hand_out_again()
        await until_empty(world)
        assert message.receive_count == 4
        for worker in workers:
            await worker.terminate()

    run(simulation())
    assert set(world.delivered) == set(members)
    assert sum(world.delivered.values()) - len(members) <= 3 * (WINDOW + CONNECTIONS)


def test_broadcasts_that_cannot_succeed_do_not_block_others() -> None:
    """They hold every place and fail for every member, as in an endpoint outage; their misses become dead letters."""
    world = World(
        make_members(50), respond=lambda each, _: 400 if each.startswith("bad") else 200, rng=random.Random(4)
    )
    bad = [tuple(f"bad{broadcast}-{number}" for number in range(15)) for broadcast in range(4)]
    world.reference_status = lambda: 400  # reference posts give no evidence either

    async def simulation() -> None:
        for number, ids in enumerate(bad):
            world.publish(Broadcast(id=f"bad-{number}", connections=ids, data="x"))
        worker = SimulatedWorker(world, max_broadcasts=4)
        await asyncio.sleep(30)
        assert worker.real_worker.engine.endpoint.holding
        world.publish(Broadcast(id="good-0", room="room", data="x"))
        for number in range(1, 10):
            await asyncio.sleep(30)
            world.publish(Broadcast(id=f"good-{number}", room="room", data="x"))
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert world.delivered == dict.fromkeys(world.members, 10)
    assert sorted(each for letter in world.dead_letters for each in decode(letter.body).connections or ()) == sorted(
        each for ids in bad for each in ids
    )


def test_a_stop_at_any_time_repeats_nothing() -> None:
    world = World(make_members(5_000), rng=random.Random(2))

    async def simulation() -> None:
        world.publish(Broadcast(id="one", room="room", data="x"))
        while len(world.delivered) < len(make_members(5_000)):
            worker = SimulatedWorker(world)
            await asyncio.sleep(0.2 * world.rng.random())
            await worker.terminate()
        worker = SimulatedWorker(world)
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert set(world.delivered.values()) == {1}


def test_redriven_dead_letters_reach_exactly_the_missed_members() -> None:
    members = make_members(300)
    rejecting = set(list(members)[::7])
    world = World(dict(members), respond=lambda each, _nth: 403 if each in rejecting else 200)

    async def simulation() -> None:
        world.publish(Broadcast(id="one", room="room", data="x"))
        worker = SimulatedWorker(world)
        await until_empty(world)
        assert set(world.delivered) == set(members) - rejecting
        world.respond = lambda _each, _nth: 200
        for letter in world.dead_letters * 2:
            world.publish(decode(letter.body))
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert set(world.delivered.values()) == {1}
    assert set(world.delivered) == set(members)


def test_broadcast_without_progress_is_dead_lettered_after_100_receives() -> None:
    world = World(make_members(3), respond=lambda _each, _nth: None)

    async def simulation() -> None:
        world.publish(Broadcast(id="one", room="room", data="x"))
        for _ in range(100):
            worker = SimulatedWorker(world)
            await asyncio.sleep(1)
            assert world.messages[0].visible_at > world.now(), "received"
            await worker.kill()
            world.messages[0].visible_at = world.now()
        worker = SimulatedWorker(world)
        await until_empty(world)
        await worker.terminate()
        [letter] = world.dead_letters
        world.respond = lambda _each, _nth: 200
        world.publish(decode(letter.body))
        worker = SimulatedWorker(world)
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert set(world.delivered.values()) == {1}
    assert len(world.delivered) == 3


def test_while_every_post_returns_410_no_member_is_removed() -> None:
    world = World(make_members(100), respond=lambda _each, _nth: 410)

    async def simulation() -> None:
        world.publish(Broadcast(id="one", room="room", data="x"))
        worker = SimulatedWorker(world)
        await until_empty(world)
        await asyncio.sleep(600)
        await worker.terminate()

    run(simulation())
    assert not world.removed
    assert len(world.current_members("room")) == 100


def test_members_gone_during_an_outage_are_not_removed_after_it() -> None:
    world = World(make_members(100), respond=lambda _each, _nth: 410)

    async def simulation() -> None:
        world.publish(Broadcast(id="one", room="room", data="x"))
        worker = SimulatedWorker(world)
        await asyncio.sleep(1)
        assert len(world.posts) == 100
        world.respond = lambda _each, _nth: 200
        world.publish(Broadcast(id="two", room="room", data="x"))
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert not world.removed
    assert len(world.delivered) == 100


def test_a_new_worker_removes_gone_members_while_others_are_delivered() -> None:
    members = make_members(100)
    gone = set(list(members)[::3])
    world = World(dict(members), respond=lambda each, _nth: 410 if each in gone else 200)

    async def simulation() -> None:
        world.publish(Broadcast(id="one", room="room", data="x"))
        worker = SimulatedWorker(world)
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert world.removed == gone
    assert world.current_members("room") == set(members) - gone


def test_slow_members_on_a_quiet_worker_become_dead_letters() -> None:
    members = make_members(1_500)
    slow = set(list(members)[:700])
    world = World(dict(members), respond=lambda each, _nth: 429 if each in slow else 200)

    async def simulation() -> None:
        world.publish(Broadcast(id="one", room="room", data="x"))
        worker = SimulatedWorker(world)
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    missed = [each for letter in world.dead_letters for each in decode(letter.body).connections or ()]
    assert sorted(missed) == sorted(slow)
    assert set(world.delivered) == set(members) - slow
    assert set(world.delivered.values()) == {1}


def test_bad_ids_do_not_hold_up_a_healthy_room() -> None:
    world = World(make_members(50), respond=lambda each, _nth: 200 if each.startswith("c") else 400)

    async def simulation() -> None:
        world.publish(Broadcast(id="bad", connections=tuple(f"bad{number}" for number in range(500)), data="x"))
        worker = SimulatedWorker(world)
        for number in range(1, 20):
            await asyncio.sleep(20)
            world.publish(Broadcast(id=f"good{number}", room="room", data="x"))
            await asyncio.sleep(20)
            assert set(world.delivered.values()) == {number}
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    missed = {each for letter in world.dead_letters for each in decode(letter.body).connections or ()}
    assert len(missed) == 500
