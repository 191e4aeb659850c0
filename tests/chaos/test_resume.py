"""Clients of rooms with history are cut off, and workers killed, repeatedly: nothing is missed or repeated.

Everything is real: the gateway with the routes, worker processes, and the reference client. Each client must see every
message of its room exactly once and in the order of its offsets, or be informed that some may be missing. No fault of
this run is a reason for the latter.
"""

import asyncio
import contextlib
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import pytest

from gatecast import Broadcast, client, table
from gatecast.client import Message, Options, Recovered
from local.backend import Backend
from local.gateway_process import GatewayProcess
from tests.chaos.harness import Harness
from tests.chaos.results import RunResult, record
from tests.chaos.scale import FULL, rng


class Scale(NamedTuple):
    """The numbers of one run; `seconds` is how long it publishes and cuts connections off."""

    rooms: int
    clients_per_room: int
    messages: int
    cuts: int
    kills: int
    seconds: float


SCALE: Final = Scale(20, 10, 10_000, 1_000, 20, 300) if FULL else Scale(4, 5, 400, 60, 3, 20)
OPTIONS: Final = Options(gap_seconds=2, backoff_seconds=0.2, max_backoff_seconds=2)
SETTINGS: Final = {"GATECAST_MAX_IN_FLIGHT": "64"}
SETTLED_SECONDS: Final = 90


class Watcher:
    """One client of one room, and what it has seen."""

    def __init__(self, room: str) -> None:
        self.room = room
        self.messages: list[tuple[int, str]] = []
        self.gaps: list[Recovered] = []
        self.recoveries = 0
        self.joined = asyncio.Event()

    async def run(self, url: str) -> None:
        async with client.connect(url, options=OPTIONS) as connected:
            events = await connected.join(self.room)
            self.joined.set()
            async for event in events:
                match event:
                    case Message(offset=int(offset), raw=bytes(raw)):
                        self.messages.append((offset, raw.decode()))
                    case Recovered(recovered=True):
                        self.recoveries += 1
                    case Recovered():
                        self.gaps.append(event)
                    case _:
                        pytest.fail(f"unexpected: {event}")


class Faults:
    """Cuts connections and kills workers, evenly over the run, at random."""

    def __init__(self, harness: Harness, gateway: GatewayProcess) -> None:
        self._harness = harness
        self._gateway = gateway
        self._random = rng("resume")
        self.cuts = 0

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._cut())
            group.create_task(self._kill())

    async def _cut(self) -> None:
        pause = SCALE.seconds / SCALE.cuts
        while self.cuts < SCALE.cuts:
            await asyncio.sleep(pause * 2 * self._random.random())
            open_connections = await asyncio.to_thread(self._gateway.connections)
            # several at once now and then, as when a network fails
            victims = self._random.sample(
                sorted(open_connections), min(len(open_connections), self._random.choice((1, 1, 1, 5)))
            )
            self.cuts += await asyncio.to_thread(self._gateway.drop, victims)

    async def _kill(self) -> None:
        for _ in range(SCALE.kills):
            await asyncio.sleep(SCALE.seconds / SCALE.kills)
            worker = self._random.choice([each for each in self._harness.workers if each.exit_code is None])
            await asyncio.to_thread(worker.kill)
            self._harness.launch(self.worker_settings)

    @property
    def worker_settings(self) -> dict[str, str]:
        return {**SETTINGS, "GATECAST_CONNECTIONS_ENDPOINT": self._gateway.endpoint}


@contextlib.asynccontextmanager
async def watching(watchers: list[Watcher], url: str) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(watcher.run(url)) for watcher in watchers]
        try:
            for watcher in watchers:
                await asyncio.wait_for(watcher.joined.wait(), SETTLED_SECONDS)
            yield
        finally:
            for task in tasks:
                task.cancel()


async def publish(harness: Harness, rooms: list[str]) -> dict[str, set[str]]:
    """Publish the messages, evenly over the run. Returns those of each room."""
    published: dict[str, set[str]] = {room: set() for room in rooms}
    started_at = time.monotonic()
    for number in range(SCALE.messages):
        room = rooms[number % len(rooms)]
        value = f'{{"number": {number}}}'
        published[room].add(value)
        broadcast = Broadcast(id=f"message-{number}", room=room, json=msgspec.Raw(value.encode()))
        await asyncio.to_thread(harness.publish, broadcast)
        await asyncio.sleep(started_at + (number + 1) * SCALE.seconds / SCALE.messages - time.monotonic())
    return published


def history(harness: Harness, room: str) -> list[tuple[int, str]]:
    """The offsets and payloads of a room's stream entries, in order."""
    pages = harness.dynamodb.get_paginator("query").paginate(
        TableName=harness.backend.table,
        ConsistentRead=True,
        KeyConditionExpression="pk = :pk AND begins_with(sk, :prefix)",
        ExpressionAttributeValues={":pk": {"S": table.stream_pk(room)}, ":prefix": {"S": table.ENTRY_PREFIX}},
    )
    items: list[Any] = [item for page in pages for item in page["Items"]]
    return [(int(item["sk"]["S"].removeprefix(table.ENTRY_PREFIX)), item["json"]["S"]) for item in items]


async def test_clients_that_are_cut_off_see_each_message_exactly_once_and_in_order(
    chaos_backend: Backend, tmp_path: Path
) -> None:
    namespace = f"resume-{uuid.uuid4().hex[:8]}"
    rooms = [f"{namespace}/{number}" for number in range(SCALE.rooms)]
    watchers = [Watcher(room) for room in rooms for _ in range(SCALE.clients_per_room)]
    async with Harness.open(chaos_backend, namespace, tmp_path) as harness:
        harness.dynamodb.put_item(
            TableName=harness.backend.table,
            Item={
                **table.key(table.settings_pk(f"{namespace}/*"), table.SETTINGS_SK),
                "history_seconds": {"N": "3600"},
            },
        )
        with GatewayProcess.start(harness.backend.environment(), log=tmp_path / "gateway.log") as gateway:
            faults = Faults(harness, gateway)
            for worker in [harness.launch(faults.worker_settings) for _ in range(2)]:
                await worker.ready()
            async with watching(watchers, gateway.url):
                publishing = asyncio.create_task(publish(harness, rooms))
                await faults.run()
                published = await publishing
                wanted = SCALE.messages // SCALE.rooms
                with contextlib.suppress(AssertionError):
                    await harness.wait_until(
                        lambda: all(len(each.messages) >= wanted or each.gaps for each in watchers),
                        seconds=SETTLED_SECONDS,
                    )
        entries = {room: await asyncio.to_thread(history, harness, room) for room in rooms}
        missing = sum(len(published[each.room] - {value for _, value in each.messages}) for each in watchers)
        repeated = sum(len(each.messages) - len(set(each.messages)) for each in watchers)
        record(
            RunResult(
                run=f"{len(watchers)} clients with history, {SCALE.cuts} cut off, {SCALE.kills} workers killed",
                members=SCALE.messages * SCALE.clients_per_room,
                missing=missing,
                repeated=repeated,
                allowed=0,
                seconds=harness.elapsed_seconds,
                notes=f"{sum(each.recoveries for each in watchers):,} resumed without a gap,"
                f" {sum(len(each.gaps) for each in watchers)} with one; members are deliveries",
            )
        )
    for room in rooms:
        offsets = [offset for offset, _ in entries[room]]
        assert offsets == list(range(offsets[0], offsets[0] + len(offsets)))
        assert Counter(value for _, value in entries[room]) == Counter(published[room])
    for watcher in watchers:
        assert not watcher.gaps
        assert watcher.messages == entries[watcher.room]
