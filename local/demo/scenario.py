"""The demo's scenario: clients connect, join and publish, a tenth of them are dropped, and deliveries are counted.

One payload is too large for a message: its receivers get a URL, and some of them fetch it and compare the content.

Results are measured, not assumed: receipts are counted at the clients, and reaped connections are read from the table.
"""

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from gatecast import Broadcast
from local.demo.clients import Clients
from local.demo.ledger import Ledger, Tally
from local.demo.plan import Message, Plan
from local.demo.screen import Screen
from local.demo.system import System

CONCURRENCY: Final = 64
DELIVERIES_PER_SECOND: Final = 2_500
"""The publishing rate: one that two cores can sustain, so that latencies are meaningful."""
QUIET_SECONDS: Final = 45.0
"""A delivery still outstanding this long after the last receipt is missing: the worker gives up none before 30 s."""
LARGE_BYTES: Final = 1_000_000
"""Of a payload that is published through the bucket: a message holds 131,072."""
READERS: Final = 10
"""Clients that fetch it."""
REAP_SECONDS: Final = 90.0
REAPABLE_AFTER_SECONDS: Final = 31.0
"""A younger connection may still be connecting, so workers do not remove it."""

_POLL_SECONDS: Final = 0.1
_SCAN_SECONDS: Final = 1.0
_TEXT: Final = "The quick brown fox jumps over the lazy dog. "

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The demo's result. `lost` counts connections that ended although they were not dropped deliberately.

    `fetching` clients should have read the large payload as it was published, `fetched` have.
    """

    tally: Tally
    dropped: int
    reaped: int
    lost: int
    fetching: int
    fetched: int
    posts_per_second: float

    @property
    def passed(self) -> bool:
        is_complete = self.reaped == self.dropped and self.fetched == self.fetching
        return is_complete and not (self.tally.missing or self.tally.strays or self.lost)


class Scenario:
    """One run. `on_broadcast`, `on_reference` and `on_end` are callbacks for the clients."""

    def __init__(self, plan: Plan, system: System, screen: Screen) -> None:
        self._plan = plan
        self._system = system
        self._screen = screen
        self._ledger = Ledger()
        self._lost: set[int] = set()
        self._dropped: list[str] = []
        self._urls: dict[int, str] = {}
        """The URL of the large payload that each client has received."""

    def on_broadcast(self, client: int, broadcast: int) -> None:
        self._ledger.received(broadcast, client, time.monotonic())

    def on_reference(self, client: int, url: str) -> None:
        self._ledger.received(self._large, client, time.monotonic())
        self._urls[client] = url

    def on_end(self, client: int) -> None:
        self._ledger.disconnected(client, time.monotonic())
        if client not in self._plan.dropped:
            self._lost.add(client)

    async def run(self, clients: Clients) -> Result:
        """Runs the scenario. Raises DemoFailed if a client cannot continue."""
        await self._for_each("connect", self._plan.clients, clients.connect)
        old_at = time.monotonic() + REAPABLE_AFTER_SECONDS
        await self._for_each("join rooms", self._plan.memberships, partial(_join, clients))
        posts_before = await asyncio.to_thread(self._system.posts)
        async with self._screen.step("receive", self._ledger.due, lambda: self._ledger.receipts):
            await self._publish(clients)
            await self._wait_for_receipts()
        seconds = max(_POLL_SECONDS, self._ledger.last_receipt_at - self._ledger.first_published_at)
        posts = await asyncio.to_thread(self._system.posts) - posts_before
        fetched = await self._fetch_large(clients) if self._system.payload_bucket else []
        reaped = await self._count_reaped(old_at)
        return Result(
            tally=self._ledger.tally(),
            dropped=len(self._plan.dropped),
            reaped=reaped,
            lost=len(self._lost),
            fetching=len(fetched),
            fetched=sum(fetched),
            posts_per_second=posts / seconds,
        )

    async def _for_each(self, title: str, items: Collection[Item], do: Callable[[Item], Awaitable[None]]) -> None:
        done = 0
        remaining = iter(items)

        async def work() -> None:
            nonlocal done
            for item in remaining:
                await do(item)
                done += 1

        async with self._screen.step(title, lambda: len(items), lambda: done), asyncio.TaskGroup() as group:
            for _ in range(CONCURRENCY):
                group.create_task(work())

    async def _publish(self, clients: Clients) -> None:
        """Lets the clients publish at an even rate of deliveries. Half way through, it drops some of them."""
        messages = self._plan.messages
        published = 0
        next_at = time.monotonic()

        async def publish(message: Message, audience: frozenset[int]) -> None:
            nonlocal published
            self._ledger.published(message.number, audience, time.monotonic())
            request = {
                "action": "publish",
                "room": message.room,
                "data": _data(message.number),
                "id": str(message.number),
                "echo": message.echo,
            }
            await clients.request(message.publisher, request)
            published += 1

        async with self._screen.step("publish", lambda: len(messages), lambda: published), asyncio.TaskGroup() as group:
            for message in messages:
                if message.number == len(messages) // 2:
                    group.create_task(self._drop())
                await asyncio.sleep(next_at - time.monotonic())
                audience = self._plan.audience(message)
                group.create_task(publish(message, audience))
                next_at += len(audience) / DELIVERIES_PER_SECOND

    async def _drop(self) -> None:
        for client in self._plan.dropped:
            self._ledger.disconnected(client, time.monotonic())
        self._dropped = await asyncio.to_thread(self._system.drop, self._plan.dropped)

    @property
    def _large(self) -> int:
        """The number of the broadcast with a large payload, behind all others."""
        return len(self._plan.messages) + 1

    async def _fetch_large(self, clients: Clients) -> list[bool]:
        """Publishes a large payload to a room. Which of the first readers among its members got it as it was."""
        room, members = next(iter(self._plan.rooms.items()))
        audience = [client for client in members if client in clients.connected]
        payload = _data(self._large, repetitions=LARGE_BYTES // len(_TEXT))
        read: list[bool] = []
        async with self._screen.step("fetch a large payload", lambda: min(READERS, len(audience)), lambda: len(read)):
            self._ledger.published(self._large, audience, time.monotonic())
            await asyncio.to_thread(self._system.publisher.publish, room=room, data=payload, id=uuid.uuid4().hex)
            await self._wait_for_receipts()
            urls = [self._urls[client] for client in sorted(self._urls)[:READERS]]
            read += [await clients.fetch(url) == payload for url in urls]
        return read

    async def _publish_to_all(self) -> None:
        """Publishes the last broadcast as a server would, to all clients: it detects every dropped connection."""
        number = len(self._plan.messages)
        broadcast = Broadcast(id=uuid.uuid4().hex, room="@all", data=_data(number))  # new in every run on one table
        self._ledger.published(number, self._plan.clients, time.monotonic())
        await asyncio.to_thread(self._system.publisher.publish, broadcast)

    async def _wait_for_receipts(self) -> None:
        """Returns when no receipt is outstanding, or when none has arrived for QUIET_SECONDS."""
        begun_at = time.monotonic()
        while self._ledger.outstanding():
            if time.monotonic() - max(begun_at, self._ledger.last_receipt_at) > QUIET_SECONDS:
                return
            await asyncio.sleep(_POLL_SECONDS)

    async def _count_reaped(self, old_at: float) -> int:
        """How many dropped connections have no items in the table any more. Waits for all of them, up to a deadline.

        The last broadcast is published at `old_at` (monotonic seconds), when all of them are old enough to be reaped.
        """
        remaining = set(self._dropped)
        total = len(remaining)
        async with self._screen.step("reap dropped clients", lambda: total, lambda: total - len(remaining)):
            await asyncio.sleep(max(0.0, old_at - time.monotonic()))
            await self._publish_to_all()
            await self._wait_for_receipts()
            deadline = time.monotonic() + REAP_SECONDS
            while remaining := await asyncio.to_thread(self._system.still_in_table, remaining):
                if time.monotonic() > deadline:
                    break
                await asyncio.sleep(_SCAN_SECONDS)
        return total - len(remaining)


async def _join(clients: Clients, membership: tuple[int, str]) -> None:
    client, room = membership
    await clients.request(client, {"action": "join", "room": room})


def _data(broadcast: int, *, repetitions: int | None = None) -> str:
    return json.dumps({"broadcast": broadcast, "text": _TEXT * (repetitions or 1 + broadcast % 5)})
