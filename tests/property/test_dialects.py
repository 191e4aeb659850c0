"""Under any sequence of faults each member receives the body of its dialect, and never another.

The real worker in virtual time (`tests.simulation`). Hypothesis chooses which members use v2, which are excluded, which
are gone, fail for a while or reject until the dead letters are sent again, and which faults hit the workers and when.
So bodies are made in first fan-outs, after crashes and takeovers, in remainders and in redriven dead letters.
"""

import random
import re
from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from gatecast import Broadcast, decode, frames
from gatecast import table as keys
from gatecast.broadcast import MAX_DATA_BYTES, Presence
from tests.memory_payloads import reference_to
from tests.simulation import EPOCH, LONG_AGO_MS, World, apply_plan, run, until_empty

HARMLESS = ("terminate", "second worker", "published again", "moved back")
EVENTS = st.sampled_from([*HARMLESS, "kill", "kill", "queue", "table", "page", "lease", "payloads"])
PLANS = st.lists(st.tuples(st.floats(0, 2), EVENTS), max_size=6)
PAYLOADS: dict[str, dict[str, Any]] = {
    "data": {"data": "é"},
    "json": {"json": msgspec.Raw(b'{"b": 9007199254740993, "a" : [1.50]}'), "from_": "ann"},
    "history": {"data": "hello", "offset": 1_800_000_000_007},
    "reference": {"reference": reference_to("a", 7)},
    "presence": {"presence": Presence(joined=("ann",)), "v": 2},
    "too large": {"data": "x" * MAX_DATA_BYTES, "offset": 7},
}
LINK = frames.Link(url="https://made.test", bytes=7, content_type="text/plain; charset=utf-8", expires_at_ms=1)
STEADY = ("c0000=", "c0001=")
"""A v1 and a v2 member that no fault hits: the failures of others are judged by their success."""


class Members:
    """Members at random: their dialects, who is excluded, and how each responds."""

    def __init__(self, count: int, seed: int) -> None:
        rng = random.Random(seed)
        ids = [*STEADY, *(f"c{number:04d}=" for number in range(len(STEADY), count))]
        self.frames = dict(zip(ids, (frames.V1, frames.V2, *(rng.choice((1, 2)) for _ in ids)), strict=False))
        self.kinds = {each: rng.choice(["", "", "", "failing", "rejecting", "gone"]) for each in ids}
        self.kinds.update(dict.fromkeys(STEADY, ""))
        self.excluded = tuple(each for each in ids if each not in STEADY and rng.random() < 0.1)
        self.rejects = True
        self._rng = rng

    def respond(self, connection_id: str, nth: int) -> int | None:
        match self.kinds.get(connection_id):
            case "gone":
                return 410
            case "failing" if nth <= 4:
                return self._rng.choice([503, None])
            case "rejecting" if self.rejects:
                return 403
        return 200


def expected_bodies(broadcast: Broadcast, members: Mapping[str, int]) -> dict[str, str]:
    """What each member should receive; without those who receive nothing."""
    excluded = frozenset(broadcast.except_ or ())
    bodies: dict[str, str] = {}
    for each, dialect in members.items():
        if dialect == frames.V1:
            payload = broadcast.data or bytes(broadcast.json or b"").decode()
            payload = frames.reference(LINK).decode() if broadcast.reference else payload
            body = "" if each in excluded else payload
        elif each in excluded:
            body = frames.skipping_frame(broadcast).decode() if broadcast.offset else ""
        elif broadcast.presence:
            body = frames.presence(str(frames.room_of(broadcast)), joined=["ann"], at_ms=int(EPOCH * 1000)).decode()
        else:
            body = frames.broadcast_frame(broadcast, LINK if broadcast.reference else UNSET).decode()
        if 0 < len(body.encode()) <= frames.MAX_FRAME_BYTES:
            bodies[each] = body
    return bodies


def without_link(body: str) -> str:
    """The body with `LINK` in place of the link that it contains, if it contains one: each worker makes another."""
    url, expires_at_ms = re.compile(r'"url":"https://[^"]+"'), re.compile(r'"expires_at_ms":\d+')
    return expires_at_ms.sub('"expires_at_ms":1', url.sub(f'"url":"{LINK.url}"', body))


def make_world(members: Members, *, shards: int, seed: int, fifo: bool) -> World:
    world = World({}, respond=members.respond, rng=random.Random(seed), fifo=fifo, payloads={"a": 7})
    for each, dialect in members.frames.items():
        world.add_members("room", {each: LONG_AGO_MS}, shard=keys.shard_of(each, shards), frames=dialect)
    # workers look whether a user is still present whose join was announced long ago
    world.table.put(keys.presence_item("room", "ann", "ann=", joined_at_ms=LONG_AGO_MS, expires_at=2 * int(EPOCH)))
    room_settings = {"shards": {"N": str(shards)}, "presence": {"N": "1000"}}
    world.table.put({**keys.key(keys.settings_pk("room"), keys.SETTINGS_SK), **room_settings})
    return world


def play(world: World, broadcast: Broadcast, members: Members, plan: list[tuple[float, str]]) -> None:
    """Publish the broadcast, apply the plan, and at its end redrive the dead letters of members that missed it."""

    async def simulation() -> None:
        world.publish(broadcast)
        workers = await apply_plan(world, plan, republish=broadcast)
        await until_empty(world)
        members.rejects = False
        for letter in [decode(each.body) for each in world.dead_letters]:
            if letter.connections and letter.part:
                world.publish(letter)
        await until_empty(world)
        for worker in workers:
            await worker.terminate()

    run(simulation())


def check_dead_letters(world: World, broadcast: Broadcast, members: Members, *, too_large: int) -> None:
    """Only rejecting members missed the broadcast; it is a dead letter as it is if its frame is too large."""
    letters = [decode(letter.body) for letter in world.dead_letters]
    missed = [letter for letter in letters if letter.connections and letter.part]
    assert {members.kinds[each] for letter in missed for each in letter.connections or ()} <= {"rejecting"}
    whole = [letter for letter in letters if letter not in missed]
    assert bool(whole) == bool(too_large)
    assert len(whole) <= too_large
    assert all(msgspec.structs.replace(letter, shard=UNSET, part="") == broadcast for letter in whole)


@pytest.mark.parametrize("kind", PAYLOADS)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    count=st.integers(2, 400) | st.just(900),
    plan=PLANS,
    target=st.sampled_from(["room", "room in shards", "connections"]),
    fifo=st.booleans(),
    seed=st.integers(0, 1_000_000),
)
@example(count=150, plan=[(0.02, "kill"), (0.03, "kill")], target="room", fifo=False, seed=1)
@example(count=150, plan=[(0.1, "kill"), (0.2, "second worker")], target="connections", fifo=False, seed=2)
def test_each_member_receives_the_body_of_its_dialect_and_no_other(
    kind: str, count: int, plan: list[tuple[float, str]], target: str, fifo: bool, seed: int
) -> None:
    members = Members(count, seed)
    named: dict[str, Any] = {"connections": tuple(members.frames), "origin_room": "room"}
    broadcast = Broadcast(
        id="one",
        **(named if target == "connections" else {"room": "room"}),
        **PAYLOADS[kind],
        except_=members.excluded or UNSET,
        published_at_ms=int(EPOCH * 1000),
    )
    shards = 3 if target == "room in shards" else 1
    world = make_world(members, shards=shards, seed=seed, fifo=fifo)
    with patch("worker.pipeline.capacity.MAX_PARKED", 0):  # what fails repeatedly leaves as a remainder
        play(world, broadcast, members, plan)

    expected = expected_bodies(broadcast, members.frames)
    received = {each: {without_link(body) for _, body in messages} for each, messages in world.received.items()}
    assert received == {each: {body} for each, body in expected.items() if members.kinds[each] != "gone"}
    assert set(world.posts) == set(expected), "nothing is posted to the others"
    faults = [event for _, event in plan if event not in HARMLESS]
    if not faults:
        assert all(len(messages) == 1 for messages in world.received.values())
    check_dead_letters(world, broadcast, members, too_large=(shards + len(faults)) * (kind == "too large"))
