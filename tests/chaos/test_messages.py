"""Arbitrary queue messages: broadcasts are delivered, all others are dead-lettered, and none stops the worker."""

import asyncio
import json
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatecast import Broadcast, InvalidBroadcast, decode, encode
from tests.chaos.harness import Harness
from tests.chaos.results import RunResult, record
from tests.chaos.scale import FULL, rng
from tests.members import connection_ids, write_members
from tests.memory_stores import MemoryTable
from tests.property.strategies import broadcasts, messages, text
from tests.simulation import EPOCH, LONG_AGO_MS, SimulatedWorker, VirtualTimeLoop, World
from worker.ports import Member, Page

MESSAGES_EACH: Final = 50
EXAMPLES: Final = 2_000 if FULL else 30
MEMBERS: Final = {f"c{number}=": LONG_AGO_MS for number in range(3)}
POISON: Final = (
    "{",
    "[]",
    "null",
    '"text"',
    "\u0000",
    '{"v":3,"id":"x","room":"few","data":"x"}',
    '{"v":1,"id":"x","room":"few"}',
    '{"v":1,"id":"x","room":"few","connections":["a"],"data":"x"}',
    '{"v":1,"id":"x","connections":[],"data":"x"}',
    '{"v":1,"id":"' + "x" * 101 + '","room":"few","data":"x"}',
    "[" * 5_000,
)


def json_values() -> st.SearchStrategy[Any]:
    plain = st.none() | st.booleans() | st.integers() | st.floats() | text(20)
    return st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text(5), inner, max_size=3))


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A broadcast with a mutation, which is usually invalid."""
    body = encode(draw(broadcasts(messages)))
    fields: dict[str, Any] = json.loads(body)
    match draw(st.sampled_from(["cut", "insert", "drop", "replace", "add", "repeat"])):
        case "cut":
            start, length = draw(st.integers(0, len(body))), draw(st.integers(1, 20))
            return body[:start] + body[start + length :] or " "
        case "insert":
            at = draw(st.integers(0, len(body)))
            return body[:at] + draw(st.text(min_size=1, max_size=5)) + body[at:]
        case "drop":
            del fields[draw(st.sampled_from(sorted(fields)))]
        case "replace":
            fields[draw(st.sampled_from(sorted(fields)))] = draw(json_values())
        case "add":
            fields[draw(st.sampled_from(["room", "connections", "shard", "part", "other"]))] = draw(json_values())
        case _:
            return body[:-1] + "," + body[1:]
    return json.dumps(fields)


BODIES: Final = (
    broadcasts(messages).map(encode) | mutated() | st.text(min_size=1, max_size=50) | json_values().map(json.dumps)
)


class MixedWorld(World):
    """A simulated world whose queue also receives poison."""

    def put(self, body: str) -> None:
        with suppress(InvalidBroadcast):
            self.named.update(decode(body).connections or ())
        self.queue.send({"MessageBody": body})


class Expected:
    """The expected result of these messages, derived from the codec alone."""

    def __init__(self, bodies: Sequence[str]) -> None:
        self.poison: Counter[str] = Counter()
        self.at_least: Counter[str] = Counter()
        self.at_most: Counter[str] = Counter()
        valid: list[Broadcast] = []
        for body in bodies:
            try:
                valid.append(decode(body))
            except InvalidBroadcast:
                self.poison[body] += 1
        keys = Counter((broadcast.room, broadcast.id, broadcast.part) for broadcast in valid)
        for broadcast in valid:
            if isinstance(broadcast.expires_at_ms, int) and broadcast.expires_at_ms <= EPOCH * 1000:
                continue
            reached = Counter(set(broadcast.connections or MEMBERS) - set(broadcast.except_ or ()))
            self.at_most += reached
            if keys[broadcast.room, broadcast.id, broadcast.part] == 1:
                self.at_least += reached


async def through_a_worker(bodies: Sequence[str]) -> tuple[Counter[str], Counter[str]]:
    """Returns the number of deliveries per connection, and the dead letters."""
    world = MixedWorld(dict(MEMBERS))
    for body in bodies:
        world.put(body)
    worker = SimulatedWorker(world)
    while world.messages:
        await asyncio.sleep(1)
        assert not worker.task.done(), worker.task.exception()
        assert world.now() < 3_600, world.messages[:3]
    await worker.terminate()
    return world.delivered, Counter(stored.body for stored in world.dead_letters)


@pytest.fixture
def every_room_has_the_same_members(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin_page(table: MemoryTable, room: str, shard: int, after: str = "") -> asyncio.Future[Page]:
        del table, room, shard
        page: asyncio.Future[Page] = asyncio.get_running_loop().create_future()
        members = [Member(member, joined) for member, joined in sorted(MEMBERS.items()) if member > after]
        page.set_result(Page(members, None))
        return page

    monkeypatch.setattr(MemoryTable, "begin_page", begin_page)


@pytest.mark.usefixtures("every_room_has_the_same_members")
def test_random_and_mutated_messages() -> None:
    started_at = time.monotonic()
    totals: Counter[str] = Counter()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(st.lists(BODIES, min_size=MESSAGES_EACH, max_size=MESSAGES_EACH))
    def check(bodies: list[str]) -> None:
        expected = Expected(bodies)
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            delivered, dead_letters = runner.run(through_a_worker(bodies))
        assert dead_letters == expected.poison
        assert delivered >= expected.at_least
        assert delivered <= expected.at_most
        totals.update(messages=len(bodies), poison=expected.poison.total(), delivered=delivered.total())

    check()
    record(
        RunResult(
            run=f"{totals['messages']:,} random and mutated messages",
            members=totals["delivered"],
            missing=0,
            repeated=0,
            allowed=0,
            dead_letters=totals["poison"],
            seconds=time.monotonic() - started_at,
            notes="the complete worker in virtual time; members are deliveries",
        )
    )


async def test_poison_among_valid_messages_stops_no_worker(harness: Harness) -> None:
    ids = connection_ids(20, "p")
    room = f"poison-{uuid.uuid4().hex[:8]}"
    write_members(harness.dynamodb, harness.backend.table, room, ids, memberships_only=True)
    good = [Broadcast(id=f"good-{number}", room=room, data=f"good-{number}") for number in range(300 if FULL else 60)]
    bad = [body.replace("few", room) for body in POISON[5:]] + [body for body in POISON[:5] if body != "\u0000"]
    messages = [*map(encode, good), *bad * (10 if FULL else 2)]
    rng("poison").shuffle(messages)
    for body in messages:
        harness.sqs.send_message(QueueUrl=harness.backend.queues.url, MessageBody=body)
    workers = [harness.launch({"GATECAST_MAX_BROADCASTS": "20"}) for _ in range(2)]
    await harness.wait_until_drained(seconds=90)
    tallies = [await harness.tally(broadcast.id, ids) for broadcast in good]
    letters = harness.dead_letters()
    missing, repeated = sum(len(tally.missing) for tally in tallies), sum(tally.repeated for tally in tallies)
    record(
        RunResult(
            run="poison among valid messages, two workers",
            members=len(ids) * len(good),
            missing=missing,
            repeated=repeated,
            allowed=0,
            dead_letters=len(letters),
            seconds=harness.elapsed_seconds,
            notes=f"{len(messages) - len(good)} of {len(messages)} messages were poison",
        )
    )
    assert missing == repeated == 0
    assert Counter(letter.body for letter in letters) == Counter(messages) - Counter(map(encode, good))
    assert all(letter.reason.startswith("poison: ") for letter in letters)
    assert all(worker.exit_code is None for worker in workers)
