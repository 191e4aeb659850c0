"""Streams of broadcasts to one room, and what its members received: what was missed, how late, in which order.

Times are from `time.monotonic`, which all processes of a machine share, including the endpoint's.
"""

import asyncio
import itertools
import math
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple, Self

from gatecast import Broadcast
from tests.chaos.endpoint_model import Counts
from tests.chaos.harness import Harness, Room

ORDER_TOLERANCE_SECONDS: Final = 2.0
"""A standard queue keeps no order: messages that were published within this time may be reordered."""


def percentile(values: Iterable[float], share: float) -> float:
    """Nearest-rank percentile; infinite if there are no values."""
    ranked = sorted(values)
    return ranked[math.ceil(share * len(ranked)) - 1] if ranked else math.inf


class Latency(NamedTuple):
    """Seconds from publishing to delivery, over all deliveries."""

    p50: float
    p99: float

    @classmethod
    def from_delays(cls, seconds: Iterable[float]) -> Self:
        """Infinite if there was no delivery."""
        ranked = sorted(seconds)
        return cls(percentile(ranked, 0.5), percentile(ranked, 0.99))

    def __str__(self) -> str:
        return f"{self.p50:.2f}/{self.p99:.2f} s"


class Received(NamedTuple):
    """The deliveries of a stream. `published_at` and `counts` are by data."""

    published_at: Mapping[str, float]
    counts: Mapping[str, Counts]

    def expected(self, ids: Sequence[str]) -> int:
        """The number of deliveries to these members if none is missed."""
        return len(self.published_at) * len(ids)

    def missing(self, ids: Iterable[str]) -> set[tuple[str, str]]:
        """(data, connection id) of each delivery that these members should have received but did not."""
        return {(data, each) for data, each in itertools.product(self.published_at, ids) if not self._has(data, each)}

    def repeated(self) -> int:
        """Deliveries beyond the first of each connection."""
        return sum(sum(counts.delivered.values()) - len(counts.delivered) for counts in self.counts.values())

    def unexpected(self, ids: Iterable[str]) -> set[str]:
        """Connections that received a message although they are not among these members."""
        return {each for counts in self.counts.values() for each in counts.delivered} - set(ids)

    def seconds(self, ids: Iterable[str]) -> list[float]:
        """Seconds from publishing to the first delivery, of each message to each of these members."""
        members = set(ids)
        return [
            at - published_at
            for data, published_at in self.published_at.items()
            for each, at in self._first_delivered_at(data).items()
            if each in members
        ]

    def latency(self, ids: Iterable[str]) -> Latency:
        return Latency.from_delays(self.seconds(ids))

    def last_delivery_at(self, ids: Sequence[str], *, published_before: float = math.inf) -> float:
        """When the last of these messages was delivered to the last of these members; infinite if any is missing."""
        return max(
            self._first_delivered_at(data).get(each, math.inf)
            for data, published_at in self.published_at.items()
            if published_at < published_before
            for each in ids
        )

    def out_of_order(self, ids: Iterable[str], *, tolerance_seconds: float = ORDER_TOLERANCE_SECONDS) -> int:
        """Deliveries that came after the delivery of a message to the same member that was published clearly later."""
        return sum(self._out_of_order(each, tolerance_seconds) for each in ids)

    def _out_of_order(self, connection_id: str, tolerance_seconds: float) -> int:
        latest = -math.inf
        count = 0
        for _, published_at in sorted(
            (self._first_delivered_at(data)[connection_id], published_at)
            for data, published_at in self.published_at.items()
            if self._has(data, connection_id)
        ):
            count += published_at + tolerance_seconds < latest
            latest = max(latest, published_at)
        return count

    def _has(self, data: str, connection_id: str) -> bool:
        return connection_id in self._first_delivered_at(data)

    def _first_delivered_at(self, data: str) -> Mapping[str, float]:
        counts = self.counts.get(data)
        return counts.first_delivered_at if counts else {}


class Stream:
    """Messages to a room, each with its own id and data. Streams with the same `ids` use the same broadcast ids."""

    def __init__(self, harness: Harness, room: Room, *, ids: str = "") -> None:
        self.room = room
        self.published_at: dict[str, float] = {}
        self._harness = harness
        self._name = uuid.uuid4().hex[:12]
        self._ids = ids or self._name

    async def publish(self) -> str:
        """Publish the next message and return its data."""
        number = len(self.published_at)
        data = f"{self._name}-{number}"
        self.published_at[data] = time.monotonic()
        broadcast = Broadcast(id=f"{self._ids}-{number}", room=self.room.name, data=data)
        await asyncio.to_thread(self._harness.publish, broadcast)
        return data

    async def publish_steadily(
        self, per_second: float, *, seconds: float = math.inf, until: asyncio.Event | None = None
    ) -> None:
        """Publish at a constant rate."""
        started_at = time.monotonic()
        for number in itertools.count():
            await asyncio.sleep(started_at + number / per_second - time.monotonic())
            if number / per_second >= seconds or (until is not None and until.is_set()):
                return
            await self.publish()

    async def received(self) -> Received:
        return Received(dict(self.published_at), await self._harness.endpoint.counts_by_data(f"{self._name}-"))

    async def is_complete(self, ids: Sequence[str]) -> bool:
        """Whether all these members have received all messages."""
        return not (await self.received()).missing(ids)
