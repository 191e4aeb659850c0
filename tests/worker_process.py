"""Real worker processes for tests: started with their environment, looked at through HTTP, stopped for certain."""

import asyncio
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp

from local.processes import Process, free_port

CHECKOUT = Path(__file__).parents[1]


class WorkerProcess(Process):
    """One worker. `log` has its output."""

    port: int

    @classmethod
    def launch(cls, environment: Mapping[str, str], log: Path) -> "WorkerProcess":
        port = free_port()
        worker = cls.start(
            [sys.executable, "-m", "worker"],
            environment={**environment, "GATECAST_HTTP_PORT": str(port)},
            log=log,
            directory=CHECKOUT,
        )
        worker.port = port
        return worker

    async def get(self, path: str) -> tuple[int, str]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{self.port}{path}") as response,
        ):
            return response.status, await response.text()

    async def ready(self, *, seconds: float = 30) -> None:
        async def is_ready() -> bool:
            try:
                return (await self.get("/readyz"))[0] == 200
            except aiohttp.ClientError:
                assert self.exit_code is None, self.log_tail()
                return False

        await eventually(is_ready, seconds=seconds)

    async def metric(self, sample: str) -> float:
        """The value of one sample, as `name{label="value"}`; 0 where there is none."""
        _, text = await self.get("/metrics")
        for line in text.splitlines():
            if line.startswith(f"{sample} "):
                return float(line.rpartition(" ")[2])
        return 0.0

    async def ended(self, *, seconds: float) -> int:
        return await asyncio.to_thread(self.wait, seconds)

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log's events of that name."""
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [event for line in lines if (event := json.loads(line)).get("event") == name]


async def eventually(condition: Any, *, seconds: float = 30) -> None:
    """Returns once `condition` (plain or async) holds; fails the test if it does not in time."""
    deadline = time.monotonic() + seconds
    while True:
        held = condition()
        if asyncio.iscoroutine(held):
            held = await held
        if held:
            return
        assert time.monotonic() < deadline, f"not within {seconds} seconds: {condition}"
        await asyncio.sleep(0.05)
