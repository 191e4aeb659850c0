"""Streams of broadcasts to several rooms under faults of members and workers: no delivery is lost.

The real worker in virtual time (`tests.simulation`); Hypothesis chooses rooms, members' behaviour, bounds and events.
"""

import asyncio
import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatecast import Broadcast, decode
from tests.simulation import World, apply_plan, run, until_empty
from worker.delivery import fanout
from worker.pipeline import admission, capacity

EVENTS = st.sampled_from(["kill", "terminate", "second worker", "queue", "table", "lease", "send", "dead letters"])
PLANS = st.lists(st.tuples(st.floats(0, 8), EVENTS), max_size=8)
BEHAVIOURS = ("well", "well", "well", "stuck", "recovers", "slow reader", "gone", "flaky", "too large")


class Members:
    """The response of each member's connection, by its behaviour."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self._world = world
        self._rng = rng
        self.behaviour: dict[str, str] = {}
        self._accepted_at: dict[str, float] = {}

    def respond(self, connection_id: str, _nth: int) -> int | None:
        now = self._world.now()
        match self.behaviour[connection_id]:
            case "stuck":
                return 429
            case "recovers":
                return 429 if 2 < now < 25 else 200
            case "slow reader":
                if now - self._accepted_at.get(connection_id, -9.0) < 1.5:
                    return 429
                self._accepted_at[connection_id] = now
            case "gone":
                return 410
            case "flaky":
                return self._rng.choice([200, 200, 503, None])
            case "too large":
                return 413
        return 200


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    messages=st.integers(1, 25),
    per_second=st.sampled_from([0.5, 5.0, 50.0]),
    bounds=st.sampled_from([(2_000, 500, 500), (3, 500, 500), (0, 2, 5), (5, 5, 3)]),
    places=st.sampled_from([1, 3, 64]),
    fifo=st.booleans(),
    plan=PLANS,
    seed=st.integers(0, 1_000_000),
)
def test_every_member_receives_every_message_or_a_dead_letter_names_it(
    sizes: list[int],
    messages: int,
    per_second: float,
    bounds: tuple[int, int, int],
    places: int,
    fifo: bool,
    plan: list[tuple[float, str]],
    seed: int,
) -> None:
    rng = random.Random(seed)
    world = World({}, rng=random.Random(seed), fifo=fifo)
    members = Members(world, rng)
    rooms = {f"room{number}": [f"m{number}-{each}" for each in range(size)] for number, size in enumerate(sizes)}
    for room, ids in rooms.items():
        world.add_members(room, ids)
    members.behaviour = {each: rng.choice(BEHAVIOURS) for ids in rooms.values() for each in ids}
    world.respond = members.respond
    # One member that reads: without any success a 410 is no proof, and a 403 is not the connection's own failure.
    members.behaviour["m0-0"] = "well"

    async def publish() -> None:
        for number in range(messages):
            for room in rooms:
                world.publish(Broadcast(id=f"{room}-{number}", room=room, data=f"{room}-{number}"))
            await asyncio.sleep(1 / per_second)

    async def simulation() -> None:
        publishing = asyncio.create_task(publish())
        workers = await apply_plan(world, plan, max_broadcasts=places)
        await publishing
        await until_empty(world)
        for worker in workers:
            await worker.terminate()

    before = capacity.MAX_PARKED, admission.MAX_WAITING, fanout.MAX_WAITING
    capacity.MAX_PARKED, admission.MAX_WAITING, fanout.MAX_WAITING = bounds  # type: ignore[misc]
    try:
        run(simulation())
    finally:
        capacity.MAX_PARKED, admission.MAX_WAITING, fanout.MAX_WAITING = before  # type: ignore[misc]

    disturbed = any(event not in ("terminate", "second worker") for _, event in plan)
    for room, ids in rooms.items():
        names = {f"{room}-{number}" for number in range(messages)}
        for each in ids:
            check(world, each, members.behaviour[each], names, disturbed=disturbed)


def check(world: World, connection_id: str, behaviour: str, names: set[str], *, disturbed: bool) -> None:
    """Every published message was received by this member or is named in a dead letter."""
    received = [name for _, name in world.received.get(connection_id, ())]
    missed = {
        broadcast.id
        for broadcast in map(decode, (letter.body for letter in world.dead_letters))
        if connection_id in (broadcast.connections or ())
    }
    assert disturbed or len(received) == len(set(received))
    match behaviour:
        case "well":
            assert set(received) == names
            assert not missed
        case "flaky" | "recovers":
            assert set(received) | missed == names
        case "stuck" | "slow reader":
            assert set(received) | missed == names or connection_id in world.closed
        case "gone":
            assert not received
            assert not missed
        case "too large":
            assert missed == names
