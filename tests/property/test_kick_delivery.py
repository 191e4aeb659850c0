"""Kicks close exactly their connections, whatever happens to the workers, and hold up no other broadcast.

The real worker in virtual time (`tests.simulation`).
"""

import asyncio
import json
import random
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatecast import Broadcast, decode
from gatecast.broadcast import Close
from gatecast.frames import V1, V2
from gatecast.kicks import kick_broadcast
from tests.simulation import (
    CONNECTIONS,
    EPOCH,
    SimulatedWorker,
    World,
    apply_plan,
    make_members,
    run,
    until_empty,
)
from worker.decisions.outcome import Outcome
from worker.delivery.kicks import BURST, FRAME_SECONDS, KICK_SHARE, LATE_JOIN_SECONDS, POOL_SHARE

EVENTS = (
    *("kill", "terminate", "second worker", "handed out again", "published again"),
    *("queue", "table", "page", "lease", "delete", "dead letters", "clock forward", "clock back"),
)
REASON = {"type": "closed", "code": "banned", "retry": False}
FRAME = json.dumps(REASON, separators=(",", ":"))


def named(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number:05d}=" for number in range(count)]


def kick(room: str = "room", **fields: object) -> Broadcast:
    close = Close(code="banned", retry=False)
    return Broadcast(**{"v": 2, "id": "kick", "room": room, "close": close, **fields})  # type: ignore[arg-type]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    sizes=st.tuples(*[st.integers(0, 400)] * 4),
    shards=st.sampled_from([1, 3]),
    plan=st.lists(st.tuples(st.floats(0, 3), st.sampled_from(EVENTS)), max_size=6),
    failing=st.sampled_from([0.0, 0.3]),
    history=st.booleans(),
    seed=st.integers(0, 1_000_000),
)
def test_a_kick_closes_every_member_and_nobody_else(
    sizes: tuple[int, ...], shards: int, plan: list[tuple[float, str]], failing: float, history: bool, seed: int
) -> None:
    rng = random.Random(seed)
    old, new, ended, others = (named(kind, size) for kind, size in zip("oneb", sizes, strict=True))
    world = World({}, rng=rng, close_status=lambda _: rng.choice([429, 503, None]) if rng.random() < failing else 204)
    for number, (members, version) in enumerate(((old, V1), (new, V2), (ended, V2))):
        world.add_members("room", members, shard=number % shards, frames=version)
    spared = [*old[:5], *new[:5]]
    world.add_members("other", others)
    world.ended.update(ended)
    world.set_shards("room", shards)
    if history:
        world.set("room", shards=shards, history_seconds=3_600)
    the_kick = kick(except_=tuple(spared))

    async def simulation() -> None:
        world.publish(the_kick)
        world.publish(Broadcast(id="b", room="other", data="x"))
        workers = await apply_plan(world, plan, republish=the_kick)
        await until_empty(world)
        for worker in workers:
            await worker.terminate()

    run(simulation())
    closed = {*old, *new} - {*spared}
    assert set(world.closed) == closed
    assert not world.dead_letters
    assert not set(old) & set(world.posts), "v1: closed without a word"
    for each in set(new) - {*spared}:
        assert {text for _, text in world.received.get(each, ())} <= {FRAME}
        assert failing or world.received[each], "it received the reason"
    assert not {*spared} & set(world.posts)
    assert all(world.delivered[each] for each in others)
    assert not world.history("room"), "no offset"


def test_kicked_connections_are_removed_from_the_table() -> None:
    world = World(make_members(30), rng=random.Random(1))
    world.add_members("room", named("n", 30), frames=V2)
    kicked = [*world.members, *named("n", 30)]

    async def simulation() -> None:
        worker = SimulatedWorker(world)
        world.publish(kick())
        await until_empty(world)
        assert worker.metrics.deliveries == {"delivered": 60, "gone": 0, "expired": 0, "rejected": 0, "undelivered": 0}
        assert worker.metrics.posts == {200: 30}, "frames are posts, and what deletes a connection is none"
        await worker.terminate()

    run(simulation())
    assert [world.posts[each] for each in named("n", 30)] == [1] * 30
    assert set(world.closed.values()) == {1}
    assert world.removed == {*kicked}
    assert not world.current_members("room")


def test_a_killed_kick_misses_nobody_and_repeats_little() -> None:
    world = World({}, rng=random.Random(2))
    world.add_members("room", named("o", 1_500), frames=V1)
    world.add_members("room", named("n", 1_500), frames=V2)

    async def simulation() -> None:
        world.publish(kick())
        while world.messages:
            worker = SimulatedWorker(world)
            await asyncio.sleep(1.7)
            await worker.kill()
            world.hand_out_again()
            assert world.now() < 600

    run(simulation())
    assert set(world.closed) == {*named("o", 1_500), *named("n", 1_500)}
    assert all(text == FRAME for each in named("n", 1_500) for _, text in world.received[each])
    assert max(world.posts.values()) <= 3


def test_a_client_that_does_not_read_is_closed_all_the_same() -> None:
    """And at once: no line of messages that waits for it, and no probes, keep it connected."""
    world = World({}, respond=lambda name, _nth: 429 if name == "stuck=" else 200, rng=random.Random(3))
    world.add_members("room", ["stuck=", "reads="], frames=V2)
    times: dict[str, float] = {}

    async def simulation() -> None:
        worker = SimulatedWorker(world)
        for number in range(20):
            world.publish(Broadcast(id=f"b{number}", room="room", data="x"))
        await asyncio.sleep(5)
        began_at = world.now()
        world.publish(kick())
        while len(world.closed) < 2:
            await asyncio.sleep(0.01)
            times.update({each: times.get(each, world.now() - began_at) for each in world.closed})
        await until_empty(world)
        assert worker.metrics.slow_clients == {"closed": 0, "kept": 0, "failed": 0}
        await worker.terminate()

    run(simulation())
    assert times["reads="] < 1
    assert times["stuck="] < FRAME_SECONDS + 2
    assert not world.dead_letters, "what waited for it has ended with it"


def test_a_member_who_joins_after_the_kick_is_left_alone() -> None:
    """A kick that is received late must not end the user's next session."""
    at_ms = int(EPOCH * 1000) - 60_000
    world = World({}, rng=random.Random(4))
    late_ms = at_ms + int(LATE_JOIN_SECONDS * 1000)
    world.add_members("room", {"before=": at_ms - 1, "at-once=": late_ms, "after=": late_ms + 1})

    async def simulation() -> None:
        worker = SimulatedWorker(world)
        world.publish(kick(published_at_ms=at_ms))
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert set(world.closed) == {"before=", "at-once="}
    assert world.current_members("room") == {"after="}


def test_connections_by_name_are_closed_whenever_they_joined() -> None:
    world = World({}, rng=random.Random(5))
    world.add_members("room", {"new=": int(EPOCH * 1000) + 10_000}, frames=V2)
    world.add_members("room", ["old="])
    world.ended.add("never=")

    async def simulation() -> None:
        worker = SimulatedWorker(world)
        world.publish(kick_broadcast(connections=["new=", "old=", "never="], code="banned", retry=False))
        await until_empty(world)
        assert worker.metrics.deliveries[Outcome.DELIVERED] == 2
        assert worker.metrics.deliveries[Outcome.GONE] == 1
        await worker.terminate()

    run(simulation())
    assert set(world.closed) == {"new=", "old="}
    assert [text for _, text in world.received["new="]] == [FRAME]
    assert world.removed == {"new=", "old="}


def test_a_kick_that_has_expired_closes_nobody() -> None:
    world = World(make_members(10), rng=random.Random(6))

    async def simulation() -> None:
        worker = SimulatedWorker(world)
        world.publish(kick(expires_at_ms=int(EPOCH * 1000) - 1, published_at_ms=int(EPOCH * 1000) - 2))
        await until_empty(world)
        assert worker.metrics.broadcasts["expired"] == 1
        await worker.terminate()

    run(simulation())
    assert not world.closed


@pytest.mark.parametrize(("status", "reason"), [(403, "rejected"), (503, "undelivered"), (None, "undelivered")])
def test_what_cannot_be_closed_is_a_dead_letter_that_closes_it_when_it_is_sent_again(
    status: int | None, reason: str
) -> None:
    failing = {*named("f", 3)}
    world = World(make_members(200), rng=random.Random(7))
    world.add_members("room", failing, frames=V2)
    world.close_status = lambda name: status if name in failing else 204

    async def simulation() -> None:
        worker = SimulatedWorker(world)
        world.publish(kick())
        while not world.dead_letters:
            await asyncio.sleep(1)
            world.publish(Broadcast(id=f"{world.now():.0f}", room="room", data="x"))  # so that others succeed
        await until_empty(world)
        [letter] = world.dead_letters
        broadcast = decode(letter.body)
        assert set(broadcast.connections or ()) == failing
        assert broadcast.close == Close(code="banned", retry=False)
        assert worker.metrics.dead_letters[reason] == 1
        assert not failing & set(world.closed)
        world.close_status = lambda _: 204
        world.publish(broadcast)
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert set(world.closed) == {*world.members, *failing}


def test_a_throttled_account_costs_no_attempt() -> None:
    """For a minute every request is throttled: nothing is given up, and everything is closed once it ends."""
    world = World(make_members(50), rng=random.Random(8))
    world.add_members("room", named("n", 50), frames=V2)

    def status(good: int) -> int:
        return 429 if world.now() < 60 else good

    world.respond = lambda _id, _nth: status(200)
    world.close_status = lambda _: status(204)
    world.reference_status = lambda: status(410)

    async def simulation() -> None:
        worker = SimulatedWorker(world)
        world.publish(kick())
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert len(world.closed) == 100
    assert not world.dead_letters


def test_while_the_endpoint_fails_for_all_a_kick_waits_and_so_do_its_frames() -> None:
    world = World({}, rng=random.Random(9), reference_status=lambda: 503)
    world.add_members("room", named("o", 50))
    world.add_members("room", named("n", 100), frames=V2)
    world.respond = lambda _id, _nth: 503 if world.now() < 120 else 200
    world.close_status = lambda _: 503 if world.now() < 120 else 204

    async def simulation() -> None:
        worker = SimulatedWorker(world)
        world.publish(kick())
        await asyncio.sleep(100)
        assert worker.health.problems.keys() == {"connections"}
        assert not world.dead_letters
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert set(world.closed) == {*named("o", 50), *named("n", 100)}
    assert not world.dead_letters
    assert all(world.delivered[each] for each in named("n", 100))


# Others


def completion_times(kicked: int, *, version: int = V1, latency: float = 0.01) -> list[float]:
    """How long each of six broadcasts to 900 members took, in seconds, at 1,000 posts per second, beside a kick of this
    number of connections, whose closing takes `latency` seconds per request.
    """
    world = World(make_members(900), rng=random.Random(10), latency=lambda: 0.01)
    shards = 4
    world.set_shards("crowd", shards)
    for shard in range(shards):
        world.add_members("crowd", named(f"x{shard:02d}-", kicked // shards), shard=shard, frames=version)
    world.close_latency = latency
    times: list[float] = []

    async def simulation() -> None:
        worker = SimulatedWorker(world, max_posts_per_second=1_000)
        await asyncio.sleep(5)
        world.publish(kick("crowd"))
        for number in range(6):
            began_at = world.now()
            world.publish(Broadcast(id=f"b{number}", room="room", data=f"b{number}"))
            await asyncio.sleep(2)
            ended_at = max(at for each in world.members for at, text in world.received[each] if text == f"b{number}")
            times.append(ended_at - began_at)
        if kicked and latency < 1:
            share = KICK_SHARE * 1_000 * 12 / version
            assert share * 0.8 < len(world.closed) < share * 1.2
        elif kicked:
            assert len(world.closed) == CONNECTIONS * POOL_SHARE
        await worker.kill()

    run(simulation())
    return times


@cache
def undisturbed_times() -> list[float]:
    return completion_times(0)


@pytest.mark.parametrize(("version", "latency"), [(V1, 0.01), (V2, 0.01), (V1, 30.0)])
def test_a_large_kick_takes_its_share_and_no_more(version: int, latency: float) -> None:
    alone = undisturbed_times()
    beside = completion_times(5_000, version=version, latency=latency)
    assert max(beside) < max(alone) * (1 + 1.2 * KICK_SHARE) + 0.05


def test_a_user_is_kicked_at_once_beside_a_large_kick_and_a_large_broadcast() -> None:
    world = World(make_members(8_000), rng=random.Random(11))
    for shard in range(4):
        world.add_members("crowd", named(f"x{shard}-", 500), shard=shard, frames=V2)
    world.set_shards("crowd", 4)
    assert BURST >= 2 * 3
    world.add_members("@user/alice", named("a", 3), frames=V2)

    async def simulation() -> None:
        worker = SimulatedWorker(world, max_posts_per_second=1_000)
        world.publish(Broadcast(id="large", room="room", data="x"))
        world.publish(kick("crowd"))
        await asyncio.sleep(5)
        world.publish(kick_broadcast(user="alice", code="banned", retry=False))
        await asyncio.sleep(1)
        assert set(named("a", 3)) <= set(world.closed)
        await worker.kill()

    run(simulation())
