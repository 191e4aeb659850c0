"""The test's side of the stand-in for `@connections`: starts its process, sets its behaviour, reads its counts."""

import os
import sys
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self, TypeVar

import aiohttp
import msgspec

from local.gateway.faults import Rule
from local.processes import LOOPBACK, Process, free_port
from tests.chaos.counting import Account, Behaviour, Client, Counts, Slice, Summary

T = TypeVar("T")
CHECKOUT = Path(__file__).parents[2]
_START_SECONDS = 20.0


class Endpoint:
    """`url` is what GATECAST_CONNECTIONS_ENDPOINT takes. Use `serving`."""

    def __init__(self, base: str, session: aiohttp.ClientSession) -> None:
        self.url = f"{base}/live"
        self._control = f"{base}/_control"
        self._session = session

    @classmethod
    @asynccontextmanager
    async def serving(cls, log: Path) -> AsyncIterator[Self]:
        """Runs the stand-in for the length of the block."""
        port = free_port()
        process = Process.start(
            [sys.executable, "-m", "tests.chaos.endpoint_process", str(port)],
            environment={**os.environ, "PYTHONPATH": str(CHECKOUT)},
            log=log,
            directory=CHECKOUT,
        )
        base = f"http://{LOOPBACK}:{port}"
        with process:
            process.wait_until_answering(f"{base}/_control/summary", timeout_seconds=_START_SECONDS)
            async with aiohttp.ClientSession() as session:
                yield cls(base, session)

    async def behave(
        self, *rules: Rule, seed: int = 0, latency_seconds: float = 0.0, account: Account | None = None
    ) -> None:
        """From now on. Without arguments: everything is delivered, at once."""
        behaviour = Behaviour(rules=rules, seed=seed, latency_seconds=latency_seconds, account=account)
        await self._ask("PUT", "behaviour", msgspec.json.encode(behaviour), type(None))

    async def summary(self) -> Summary:
        return await self._ask("GET", "summary", b"", Summary)

    async def slices(self) -> list[Slice]:
        return await self._ask("GET", "slices", b"", list[Slice])

    async def counts(self, data: str) -> Counts:
        return await self._ask("POST", "counts", data.encode(), Counts)

    async def counts_by_data(self, prefix: str) -> dict[str, Counts]:
        """Of all data that was delivered and begins like this."""
        return await self._ask("POST", "counts_by_data", prefix.encode(), dict[str, Counts])

    async def clients(self) -> dict[str, Client]:
        """What became of those that were refused or closed at least once, by connection id."""
        return await self._ask("GET", "clients", b"", dict[str, Client])

    async def _ask(self, method: str, path: str, body: bytes, answer: type[T]) -> T:
        async with self._session.request(method, f"{self._control}/{path}", data=body) as response:
            response.raise_for_status()
            return msgspec.json.decode(await response.read(), type=answer)


class Tally(msgspec.Struct, frozen=True):
    """Who should have been reached, and was. `repeated` counts deliveries beyond the first of each."""

    missing: frozenset[str]
    strangers: frozenset[str]
    repeated: int
    most: int

    @classmethod
    def of(cls, counts: Counts, expected: Collection[str]) -> Self:
        delivered = counts.delivered
        return cls(
            frozenset(expected) - delivered.keys(),
            frozenset(delivered.keys() - set(expected)),
            sum(delivered.values()) - len(delivered),
            max(delivered.values(), default=0),
        )
