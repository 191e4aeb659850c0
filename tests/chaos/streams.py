"""Streams of broadcasts to one room, and what their members saw of them: who missed what, how late, in which order.

Times are those of `time.monotonic`, which all processes of a machine share: the endpoint's, too.
"""

import asyncio
import itertools
import math
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple, Self

from gatecast import Broadcast
from tests.chaos.arena import Arena, Room
from tests.chaos.counting import Counts

SAME_MOMENT_SECONDS: Final = 2.0
"""A standard queue keeps no order: messages that were published within this time may overtake each other."""


def percentile(values: Iterable[float], share: float) -> float:
    """By the nearest rank; infinite where there are no values."""
    ranked = sorted(values)
    return ranked[math.ceil(share * len(ranked)) - 1] if ranked else math.inf


class Latency(NamedTuple):
    """Seconds from publishing to delivery, over all deliveries."""

    p50: float
    p99: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Self:
        """Infinite where there was no delivery."""
        ranked = sorted(seconds)
        return cls(percentile(ranked, 0.5), percentile(ranked, 0.99))

    def __str__(self) -> str:
        return f"{self.p50:.2f}/{self.p99:.2f} s"


class Received(NamedTuple):
    """What was delivered of a stream. `published_at` and `counts` are by data."""

    published_at: Mapping[str, float]
    counts: Mapping[str, Counts]

    def missing(self, ids: Iterable[str]) -> set[tuple[str, str]]:
        """Data and connection of each delivery that these members should have had and did not have."""
        return {(data, each) for data, each in itertools.product(self.published_at, ids) if not self._has(data, each)}

    def repeated(self) -> int:
        """Deliveries beyond the first of each connection."""
        return sum(sum(counts.delivered.values()) - len(counts.delivered) for counts in self.counts.values())

    def strangers(self, ids: Iterable[str]) -> set[str]:
        """Who had something of it and is none of these."""
        return {each for counts in self.counts.values() for each in counts.delivered} - set(ids)

    def seconds(self, ids: Iterable[str]) -> list[float]:
        """From publishing to the first delivery, of each message to each of these members."""
        members = set(ids)
        return [
            at - published_at
            for data, published_at in self.published_at.items()
            for each, at in self._first_at(data).items()
            if each in members
        ]

    def latency(self, ids: Iterable[str]) -> Latency:
        return Latency.of(self.seconds(ids))

    def last_delivery_at(self, ids: Sequence[str], *, published_before: float = math.inf) -> float:
        """When the last of these messages was delivered to the last of these members; infinite if any is missing."""
        return max(
            self._first_at(data).get(each, math.inf)
            for data, published_at in self.published_at.items()
            if published_at < published_before
            for each in ids
        )

    def overtaken(self, ids: Iterable[str], *, same_moment_seconds: float = SAME_MOMENT_SECONDS) -> int:
        """How many deliveries came after that of a message which was published clearly later, to the same member."""
        return sum(self._overtaken(each, same_moment_seconds) for each in ids)

    def _overtaken(self, connection_id: str, same_moment_seconds: float) -> int:
        latest = -math.inf
        count = 0
        for _, published_at in sorted(
            (self._first_at(data)[connection_id], published_at)
            for data, published_at in self.published_at.items()
            if self._has(data, connection_id)
        ):
            count += published_at + same_moment_seconds < latest
            latest = max(latest, published_at)
        return count

    def _has(self, data: str, connection_id: str) -> bool:
        return connection_id in self._first_at(data)

    def _first_at(self, data: str) -> Mapping[str, float]:
        counts = self.counts.get(data)
        return counts.first_at if counts else {}


class Stream:
    """Messages to a room, each with an id and data of its own. Streams with the same `ids` use the same ids."""

    def __init__(self, arena: Arena, room: Room, *, ids: str = "") -> None:
        self.room = room
        self.published_at: dict[str, float] = {}
        self._arena = arena
        self._name = uuid.uuid4().hex[:12]
        self._ids = ids or self._name

    async def publish(self) -> str:
        """One message more. Returns its data."""
        number = len(self.published_at)
        data = f"{self._name}-{number}"
        self.published_at[data] = time.monotonic()
        broadcast = Broadcast(id=f"{self._ids}-{number}", room=self.room.name, data=data)
        await asyncio.to_thread(self._arena.publish, broadcast)
        return data

    async def flow(self, per_second: float, *, seconds: float = math.inf, until: asyncio.Event | None = None) -> None:
        """Publishes at an even pace."""
        started_at = time.monotonic()
        for number in itertools.count():
            await asyncio.sleep(started_at + number / per_second - time.monotonic())
            if number / per_second >= seconds or (until is not None and until.is_set()):
                return
            await self.publish()

    async def received(self) -> Received:
        return Received(dict(self.published_at), await self._arena.endpoint.counts_by_data(f"{self._name}-"))

    async def complete(self, ids: Sequence[str]) -> bool:
        """Whether all these members have had all of it."""
        return not (await self.received()).missing(ids)
