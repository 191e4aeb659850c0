"""The test's side of the fake `@connections` endpoint: starts its process, sets its behaviour, reads its counts."""

import os
import sys
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self, TypeVar

import aiohttp
import msgspec

from gatecast.emulator.faults import Rule
from local.processes import LOOPBACK, Process, free_port
from tests.chaos.endpoint_model import Account, Behaviour, Client, Counts, Slice, Summary

T = TypeVar("T")
CHECKOUT = Path(__file__).parents[2]
_START_SECONDS = 20.0


class Endpoint:
    """`url` is the value for GATECAST_CONNECTIONS_ENDPOINT. Use `serving`."""

    def __init__(self, base: str, session: aiohttp.ClientSession) -> None:
        self.url = f"{base}/live"
        self._control = f"{base}/_control"
        self._session = session

    @classmethod
    @asynccontextmanager
    async def serving(cls, log: Path) -> AsyncIterator[Self]:
        """Run the endpoint for the duration of the block."""
        port = free_port()
        process = Process.start(
            [sys.executable, "-m", "tests.chaos.endpoint_process", str(port)],
            environment={**os.environ, "PYTHONPATH": str(CHECKOUT)},
            log=log,
            directory=CHECKOUT,
        )
        base = f"http://{LOOPBACK}:{port}"
        with process:
            process.wait_until_responding(f"{base}/_control/summary", timeout_seconds=_START_SECONDS)
            async with aiohttp.ClientSession() as session:
                yield cls(base, session)

    async def configure(
        self, *rules: Rule, seed: int = 0, latency_seconds: float = 0.0, account: Account | None = None
    ) -> None:
        """Set the behaviour from now on. Without arguments every post is delivered, without latency."""
        behaviour = Behaviour(rules=rules, seed=seed, latency_seconds=latency_seconds, account=account)
        await self._call("PUT", "behaviour", msgspec.json.encode(behaviour), type(None))

    async def summary(self) -> Summary:
        return await self._call("GET", "summary", b"", Summary)

    async def slices(self) -> list[Slice]:
        return await self._call("GET", "slices", b"", list[Slice])

    async def counts(self, data: str) -> Counts:
        return await self._call("POST", "counts", data.encode(), Counts)

    async def counts_by_data(self, prefix: str) -> dict[str, Counts]:
        """The counts of all data with this prefix."""
        return await self._call("POST", "counts_by_data", prefix.encode(), dict[str, Counts])

    async def clients(self) -> dict[str, Client]:
        """Connections that were throttled or closed at least once, by connection id."""
        return await self._call("GET", "clients", b"", dict[str, Client])

    async def _call(self, method: str, path: str, body: bytes, result: type[T]) -> T:
        async with self._session.request(method, f"{self._control}/{path}", data=body) as response:
            response.raise_for_status()
            return msgspec.json.decode(await response.read(), type=result)


class Tally(msgspec.Struct, frozen=True):
    """Deliveries compared with the expected connections. `repeated` counts deliveries beyond the first of each."""

    missing: frozenset[str]
    unexpected: frozenset[str]
    repeated: int

    @classmethod
    def from_counts(cls, counts: Counts, expected: Collection[str]) -> Self:
        delivered = counts.delivered
        return cls(
            frozenset(expected) - delivered.keys(),
            frozenset(delivered.keys() - set(expected)),
            sum(delivered.values()) - len(delivered),
        )
