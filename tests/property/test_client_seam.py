"""The whole client in virtual time, against a server in memory and a network that reorders, loses and cuts.

Whatever happens: each message of a room with history once and in order, or `recovered=False` with the offsets that may
be missing. And while the history is complete, nothing is ever reported as missing.
"""

import asyncio
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from gatecast.client import Client, Message, Recovered, Room, RoomEvent
from tests.client_server import (
    FIRST_OFFSET,
    Server,
    client_of,
    fails,
    in_virtual_time,
    no_connection,
    reordering,
    silent,
    until,
)
from tests.examples import examples

ROOMS = ("a", "b", "c")
SECONDS = 3_000
FAULTS = ("cut", "cut one", "no connection", "reconnect", "closed", "unavailable", "rate limited", "history", "silent")


class Reader:
    """The program: it reads one room, now and then slowly, and checks what it gets as it arrives."""

    def __init__(self, room: Room, rng: random.Random) -> None:
        self.room = room
        self.texts: list[str] = []
        self.reports: list[Recovered] = []
        self._position = room.offset or 0
        self._excused: set[int] = set()
        self._rng = rng

    async def run(self) -> None:
        async for event in self.room:
            self.take(event)
            if self._rng.random() < 0.05:
                await asyncio.sleep(self._rng.random() * 20)

    def take(self, event: RoomEvent) -> None:
        if isinstance(event, Recovered) and not event.recovered:
            assert event.after is not None
            assert event.before is not None
            self.reports.append(event)
            self._excused |= set(range(event.after + 1, event.before))
        elif isinstance(event, Message):
            assert event.offset is not None
            assert event.data is not None
            assert event.offset > self._position, "once, and in order"
            assert not set(range(self._position + 1, event.offset)) - self._excused, "missing without a report"
            self._position = event.offset
            self.texts.append(event.data)


async def publish(client: Client, name: str, count: int, rng: random.Random) -> None:
    for number in range(count):
        await asyncio.sleep(rng.expovariate(count / SECONDS))
        await client.publish(name, data=f"{name}{number}")


def inject(fault: str, server: Server, rng: random.Random) -> None:
    match fault:
        case "cut":
            server.cut(server.open)
        case "cut one":
            server.cut(server.open[:1])
        case "no connection":
            server.failures += [no_connection()] * rng.randrange(3)
        case "reconnect" | "closed":
            for connection in server.open:
                fields = {"within_ms": rng.randrange(60_000)} if fault == "reconnect" else {"code": "x", "retry": True}
                server.send(connection, type=fault, **fields)
        case "unavailable":
            server.script("join", *[fails("unavailable")] * rng.randrange(3))
        case "rate limited":
            server.script("join", fails("rate_limited", retry_after_seconds=2))
        case "history":
            server.script("history", fails("unavailable"), silent)
        case "silent":
            server.script(rng.choice(["publish", "ping", "join"]), silent)


async def disturb(server: Server, rng: random.Random, faults: int, *, expire: bool) -> None:
    for _ in range(faults):
        await asyncio.sleep(rng.expovariate(faults / SECONDS))
        inject(rng.choice(FAULTS), server, rng)
        for name in ROOMS:
            for number in range(rng.randrange(3)):
                server.publish(name, f"{name}-server-{number}", lose=rng.random() < 0.2)
            if expire and rng.random() < 0.2:
                server.expire(name, rng.randrange(5))


async def run(
    seed: int, *, faults: int, expire: bool, max_buffered: int = 1_000, max_held: int = 1_000
) -> list[Reader]:
    rng = random.Random(seed)
    server = Server(reordering(rng, rng.choice([0.1, 3.0])))
    server.keep_history(*ROOMS)
    publisher = client_of(server, "bob", seed=seed + 1)
    async with client_of(server, seed=seed, max_buffered=max_buffered, max_held=max_held) as client, publisher:
        readers = [Reader(await client.join(name), rng) for name in ROOMS]
        for name in ROOMS:
            await publisher.join(name)
        reading = [asyncio.create_task(reader.run()) for reader in readers]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(disturb(server, rng, faults, expire=expire))
            for name in ROOMS:
                tasks.create_task(publish(publisher, name, 30, rng))
        server.scripts.clear()
        server.failures.clear()
        for name in ROOMS:
            server.publish(name, "the last one")
        async with asyncio.timeout(7_200):
            await until(lambda: all(reader.room.offset == server.room(reader.room.name).head for reader in readers))
        for task in reading:
            task.cancel()
        for outcome in await asyncio.gather(*reading, return_exceptions=True):
            assert isinstance(outcome, asyncio.CancelledError), outcome
    if not expire:
        for reader in readers:
            head = server.room(reader.room.name).head or 0
            assert len(reader.texts) == head - FIRST_OFFSET
            assert not reader.reports
    return readers


@settings(deadline=None, max_examples=examples(40))
@given(seed=st.integers(0, 2**32), faults=st.integers(0, 60), max_buffered=st.sampled_from([3, 1_000]))
def test_no_message_is_lost_repeated_or_reordered_while_the_history_is_complete(
    seed: int, faults: int, max_buffered: int
) -> None:
    async def scenario() -> None:
        await run(seed, faults=faults, expire=False, max_buffered=max_buffered, max_held=max_buffered)

    in_virtual_time(scenario())


@settings(deadline=None, max_examples=examples(40))
@given(seed=st.integers(0, 2**32), faults=st.integers(0, 60))
def test_what_has_expired_is_reported_and_everything_else_arrives_once_and_in_order(seed: int, faults: int) -> None:
    async def scenario() -> None:
        await run(seed, faults=faults, expire=True)

    in_virtual_time(scenario())
