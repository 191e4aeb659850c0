"""The course of the demo: everybody comes, joins and talks, a tenth vanishes, the rest is counted.

Nothing is assumed: what was received is counted at the clients, what was cleaned up is read from the table.
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

AT_ONCE: Final = 64
DELIVERIES_PER_SECOND: Final = 2_500
"""The pace of publishing: one that two cores keep up with, so that latencies mean something."""
QUIET_SECONDS: Final = 45.0
"""What has not come so long after the last receipt is missing: the worker gives up no delivery before 30 s."""
REAP_SECONDS: Final = 90.0
OLD_SECONDS: Final = 31.0
"""A connection that is younger may still be connecting: no worker removes it."""

_LOOK_SECONDS: Final = 0.1
_SCAN_SECONDS: Final = 1.0
_TEXT: Final = "The quick brown fox jumps over the lazy dog. "

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How it went. `lost` counts connections that ended although their clients did not vanish."""

    tally: Tally
    vanished: int
    reaped: int
    lost: int
    posts_per_second: float

    @property
    def good(self) -> bool:
        return not (self.tally.missing or self.tally.strays or self.lost) and self.reaped == self.vanished


class Scenario:
    """One run. `on_broadcast` and `on_end` are for the clients to call."""

    def __init__(self, plan: Plan, system: System, screen: Screen) -> None:
        self._plan = plan
        self._system = system
        self._screen = screen
        self._ledger = Ledger()
        self._lost: set[int] = set()
        self._vanished: list[str] = []

    def on_broadcast(self, client: int, broadcast: int) -> None:
        self._ledger.received(broadcast, client, time.monotonic())

    def on_end(self, client: int) -> None:
        self._ledger.left(client, time.monotonic())
        if client not in self._plan.vanishing:
            self._lost.add(client)

    async def run(self, clients: Clients) -> Result:
        """Raises DemoFailed if the clients cannot go on."""
        await self._for_each("connect", self._plan.clients, clients.connect)
        old_at = time.monotonic() + OLD_SECONDS
        await self._for_each("join rooms", self._plan.memberships, partial(_join, clients))
        posts_before = await asyncio.to_thread(self._system.posts)
        async with self._screen.step("receive", self._ledger.due, lambda: self._ledger.receipts):
            await self._publish(clients)
            await self._settle()
        seconds = max(_LOOK_SECONDS, self._ledger.last_receipt_at - self._ledger.first_published_at)
        posts = await asyncio.to_thread(self._system.posts) - posts_before
        reaped = await self._count_reaped(old_at)
        return Result(
            tally=self._ledger.tally(),
            vanished=len(self._plan.vanishing),
            reaped=reaped,
            lost=len(self._lost),
            posts_per_second=posts / seconds,
        )

    async def _for_each(self, title: str, things: Collection[T], do: Callable[[T], Awaitable[None]]) -> None:
        done = 0
        left = iter(things)

        async def work() -> None:
            nonlocal done
            for thing in left:
                await do(thing)
                done += 1

        async with self._screen.step(title, lambda: len(things), lambda: done), asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(work())

    async def _publish(self, clients: Clients) -> None:
        """Lets the clients publish at an even pace of deliveries. Half way, some vanish in the middle of it all."""
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
                    group.create_task(self._vanish())
                await asyncio.sleep(next_at - time.monotonic())
                audience = self._plan.audience(message)
                group.create_task(publish(message, audience))
                next_at += len(audience) / DELIVERIES_PER_SECOND

    async def _vanish(self) -> None:
        for client in self._plan.vanishing:
            self._ledger.left(client, time.monotonic())
        self._vanished = await asyncio.to_thread(self._system.vanish, self._plan.vanishing)

    async def _publish_to_all(self) -> None:
        """The last one, made by a server: it finds out everyone that has vanished."""
        number = len(self._plan.messages)
        broadcast = Broadcast(id=uuid.uuid4().hex, room="@all", data=_data(number))  # new in every run on one table
        self._ledger.published(number, self._plan.clients, time.monotonic())
        await asyncio.to_thread(self._system.publisher.publish, broadcast)

    async def _settle(self) -> None:
        """Returns when nothing is outstanding, or when nothing has come for so long that nothing will."""
        begun_at = time.monotonic()
        while self._ledger.outstanding():
            if time.monotonic() - max(begun_at, self._ledger.last_receipt_at) > QUIET_SECONDS:
                return
            await asyncio.sleep(_LOOK_SECONDS)

    async def _count_reaped(self, old_at: float) -> int:
        """How many of those that vanished have left no item in the table; waits for all of them, but not for ever.

        The last broadcast goes out when all of them are so old (monotonic seconds) that no worker waits any more.
        """
        left = set(self._vanished)
        total = len(left)
        async with self._screen.step("reap the vanished", lambda: total, lambda: total - len(left)):
            await asyncio.sleep(max(0.0, old_at - time.monotonic()))
            await self._publish_to_all()
            await self._settle()
            deadline = time.monotonic() + REAP_SECONDS
            while left := await asyncio.to_thread(self._system.still_in_table, left):
                if time.monotonic() > deadline:
                    break
                await asyncio.sleep(_SCAN_SECONDS)
        return total - len(left)


async def _join(clients: Clients, membership: tuple[int, str]) -> None:
    client, room = membership
    await clients.request(client, {"action": "join", "room": room})


def _data(broadcast: int) -> str:
    return json.dumps({"broadcast": broadcast, "text": _TEXT * (1 + broadcast % 5)})
