"""Under any sequence of faults a room's offsets are dense and unique, and a client's position has no gap.

The real worker in virtual time (`tests.simulation`). Hypothesis chooses the faults, and when clients join: each writes
its membership, then reads what the history has. Every message must be in what it read, or be posted to it.
"""

import asyncio
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatecast import Broadcast, decode
from gatecast import table as keys
from gatecast.frames import V2
from tests.examples import examples
from tests.simulation import SimulatedWorker, World, apply_plan, run, until_empty

EVENTS = st.sampled_from([
    "kill", "terminate", "second worker", "queue", "table", "lease", "append", "responses", "page", "clock forward",
    "clock back", "handed out again", "moved back",
])  # fmt: skip
PLANS = st.lists(st.tuples(st.floats(0, 3), EVENTS), max_size=8)


def remembering_world(*, members: int = 5, shards: int = 1, seed: int = 0, fifo: bool = False) -> World:
    world = World({}, rng=random.Random(seed), fifo=fifo)
    world.set("room", history_seconds=3_600, shards=shards, join_shards=shards)
    for number in range(members):
        connection_id = f"c{number}="
        world.add_members("room", [connection_id], shard=keys.shard_of(connection_id, shards), frames=V2)
    return world


def join(world: World, connection_id: str, shards: int) -> dict[int, str]:
    """A client joins the room. Returns what it finds in the history."""
    world.add_members("room", [connection_id], shard=keys.shard_of(connection_id, shards), frames=V2)
    if world.table.get(keys.stream_pk("room"), keys.HEAD_SK) is None:
        head = {"offset": {"N": str(int(world.wall_clock() * 1000))}}
        world.table.put({**keys.key(keys.stream_pk("room"), keys.HEAD_SK), **head})
    return world.history("room")


def posted(world: World, connection_id: str) -> Iterator[tuple[int | None, str]]:
    """The offsets and ids of the messages that were posted to a client."""
    for _, body in world.received.get(connection_id, []):
        frame = json.loads(body)
        assert frame["room"] == "room"
        for message in frame["messages"]:
            yield message.get("offset"), message["id"]


def check(world: World, published: list[str], found: dict[str, dict[int, str]]) -> None:
    """The history holds every message once, at dense offsets, and no client has a gap."""
    history = world.history("room")
    assert sorted(history.values()) == sorted(published)
    offsets = sorted(history)
    assert offsets == list(range(offsets[0], offsets[0] + len(published)))
    assert keys.offset_of_head(world.table.get(keys.stream_pk("room"), keys.HEAD_SK)) == offsets[-1]
    for connection_id, read in found.items():
        seen = dict(read)
        for offset, name in posted(world, connection_id):
            assert offset is not None
            assert history[offset] == name
            seen[offset] = name
        assert seen == history, connection_id


@settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    shards=st.sampled_from([1, 1, 3]),
    fifo=st.booleans(),
    plan=PLANS,
    pauses=st.lists(st.floats(0, 2), min_size=1, max_size=25),
    joins=st.lists(st.floats(0, 3), max_size=4),
    seed=st.integers(0, 1_000_000),
)
def test_under_any_faults_offsets_are_dense_and_no_client_has_a_gap(
    shards: int,
    fifo: bool,
    plan: list[tuple[float, str]],
    pauses: list[float],
    joins: list[float],
    seed: int,
) -> None:
    world = remembering_world(shards=shards, seed=seed, fifo=fifo)
    names = [f"b{number:02}" for number in range(len(pauses))]
    found: dict[str, dict[int, str]] = {f"c{number}=": {} for number in range(5)}

    async def publish() -> None:
        for name, seconds in zip(names, pauses, strict=True):
            world.publish(Broadcast(id=name, room="room", data=name))
            await asyncio.sleep(seconds if seconds > 1 else 0)

    async def join_later() -> None:
        for number, seconds in enumerate(joins):
            await asyncio.sleep(seconds)
            found[f"late{number}="] = join(world, f"late{number}=", shards)

    async def simulation() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(publish())
            group.create_task(join_later())
            workers = await apply_plan(world, plan)
        await until_empty(world)
        for worker in workers:
            await worker.terminate()

    run(simulation())
    check(world, names, found)
    assert not world.dead_letters
    if fifo and "moved back" not in {event for _, event in plan}:
        assert [name for _, name in sorted(world.history("room").items())] == names


class MortalWorker(SimulatedWorker):
    """Dies in its call with number `at`, before the call takes effect, or else right after it."""

    def __init__(self, world: World, at: int) -> None:
        self.calls_left = at
        self.last_call = ("", "")
        super().__init__(world)

    async def _before_call(self, component: str, operation: str) -> None:
        self.calls_left -= (component, operation) != ("queue", "receive")
        if self.calls_left == 0 and self.alive:
            self.last_call = (component, operation)
            self.alive = False
        await super()._before_call(component, operation)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("lost_response", [False, True])
def test_a_writer_may_die_in_any_call(shards: int, lost_response: bool) -> None:
    died_in = set()
    for at in range(1, 60):
        world = remembering_world(shards=shards)
        names = [f"b{number}" for number in range(3)]
        found: dict[str, dict[int, str]] = {f"c{number}=": {} for number in range(5)}

        async def simulation(
            world: World = world,
            names: list[str] = names,
            at: int = at,
            found: dict[str, dict[int, str]] = found,
        ) -> None:
            if lost_response:
                world.broken.add("responses")
            for name in names:
                world.publish(Broadcast(id=name, room="room", data=name))
            mortal = MortalWorker(world, at)
            await asyncio.sleep(20)
            world.broken.clear()
            died_in.add(mortal.last_call)
            await mortal.kill()
            worker = SimulatedWorker(world)
            found["late="] = join(world, "late=", shards)
            await until_empty(world)
            await worker.terminate()

        run(simulation())
        check(world, names, found)
    assert {("progress", "claim"), ("stream", "append"), ("table", "begin_page"), ("progress", "complete")} <= died_in
    assert (("queue", "send") in died_in) == (shards > 1)


def test_broadcasts_that_wait_share_transactions_in_the_order_in_which_they_were_received() -> None:
    world = remembering_world()
    names = [f"b{number:03}" for number in range(200)]

    async def simulation() -> None:
        for name in names:
            world.publish(Broadcast(id=name, room="room", data=name))
        worker = SimulatedWorker(world, max_broadcasts=1_000)
        await until_empty(world)
        metrics = worker.metrics
        assert metrics.history_messages == {"appended": 200, "without_payload": 0, "rejected": 0}
        assert metrics.history_transactions <= 40
        assert metrics.history_conflicts == 0
        assert metrics.history_append_duration.total > 0
        await worker.terminate()

    run(simulation())
    check(world, names, {})
    order = [name for _, name in sorted(world.history("room").items())]
    displaced = sum(abs(order.index(name) - number) for number, name in enumerate(names))
    assert displaced <= len(names), "only claims that overtook others changed the order"


@pytest.mark.parametrize("writers", [2, 5])
def test_several_workers_that_write_to_one_room_all_get_their_turn(writers: int) -> None:
    world = remembering_world(seed=writers)
    names = [f"b{number:03}" for number in range(400)]

    async def simulation() -> None:
        workers = [SimulatedWorker(world) for _ in range(writers)]
        await asyncio.sleep(1)
        for name in names:
            world.publish(Broadcast(id=name, room="room", data=name))
            await asyncio.sleep(0.005)
        await until_empty(world)
        for worker in workers:
            durations = worker.metrics.history_append_duration
            assert not sum(durations.counts[durations.buckets.index(0.5) + 1 :]), "one waited longer than half a second"
            await worker.terminate()
        assert sum(worker.metrics.history_conflicts for worker in workers)

    run(simulation())
    check(world, names, {})


def test_while_the_table_is_down_broadcasts_wait_and_their_leases_are_renewed() -> None:
    world = remembering_world()

    async def simulation() -> None:
        world.broken.add("append")
        world.publish(Broadcast(id="one", room="room", data="x"))
        worker = SimulatedWorker(world)
        await asyncio.sleep(200)
        assert worker.health.problems == {"history": "broken"}
        assert worker.metrics.lease_extensions["extended"] > 10
        assert not world.posts
        world.broken.clear()
        await until_empty(world)
        assert not worker.health.problems
        assert world.queue.messages == []
        await worker.terminate()

    run(simulation())
    check(world, ["one"], {f"c{number}=": {} for number in range(5)})


def test_a_worker_that_stops_while_the_table_is_down_releases_what_waits() -> None:
    world = remembering_world()

    async def simulation() -> None:
        world.broken.add("append")
        world.publish(Broadcast(id="one", room="room", data="x"))
        worker = SimulatedWorker(world)
        await asyncio.sleep(10)
        stopped_at = world.now()
        await worker.terminate()
        assert world.now() - stopped_at < 10
        assert worker.metrics.broadcasts["released"] == 1
        world.broken.clear()
        worker = SimulatedWorker(world)
        await asyncio.sleep(1)
        assert not world.messages
        await worker.terminate()

    run(simulation())
    check(world, ["one"], {f"c{number}=": {} for number in range(5)})


def test_a_dead_letter_carries_its_offset_and_keeps_it_when_it_is_redriven() -> None:
    world = remembering_world()
    world.respond = lambda _id, _nth: None

    async def simulation() -> None:
        world.publish(Broadcast(id="one", room="room", data="x"))
        world.messages[0].receive_count = 99
        worker = SimulatedWorker(world)
        await asyncio.sleep(1)
        await worker.kill()
        world.messages[0].visible_at = world.now()
        worker = SimulatedWorker(world)
        await until_empty(world)
        [letter] = [decode(letter.body) for letter in world.dead_letters]
        assert {letter.offset: letter.id} == world.history("room")
        assert letter.room == "room"
        world.respond = lambda _id, _nth: 200
        world.publish(letter)
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    check(world, ["one"], {f"c{number}=": {} for number in range(5)})


def test_messages_for_connections_and_of_rooms_without_history_are_not_appended() -> None:
    world = remembering_world(members=2)
    world.add_members("plain", ["p=", "q="], frames=V2)

    async def simulation() -> None:
        worker = SimulatedWorker(world)
        world.publish(Broadcast(id="one", room="plain", data="x"))
        world.publish(Broadcast(id="two", connections=("c0=",), data="x"))
        world.publish(Broadcast(id="three", room="room", data="x", shard=0, part="s0"))
        world.publish(Broadcast(id="four", room="room", data="x", offset=7))
        await until_empty(world)
        assert not worker.metrics.history_transactions
        await worker.terminate()

    run(simulation())
    assert not world.history("room")
    assert not world.history("plain")
    assert dict(posted(world, "c1=")) == {None: "three", 7: "four"}


def test_json_is_stored_and_posted_byte_by_byte() -> None:
    world = remembering_world(members=1)
    payload = '{"b": 12345678901234567890,"a":[1.0,  2],"a":null,"é":"\\u00e9"}'
    body: dict[str, Any] = {"v": 1, "id": "one", "room": "room", "from": "ann"}

    async def simulation() -> None:
        worker = SimulatedWorker(world)
        encoded = json.dumps(body)[:-1] + f', "json": {payload}}}'
        world.publish(decode(encoded))
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    [(offset, name)] = world.history("room").items()
    stored = world.table.get(keys.stream_pk("room"), keys.entry_sk(offset))
    assert stored is not None
    assert (name, stored["json"]["S"], stored["from"]["S"]) == ("one", payload, "ann")
    [(_, frame)] = world.received["c0="]
    assert payload in frame
