"""Real worker processes for tests: started with an environment, observed over HTTP, and always stopped."""

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
    """One worker process. `log` is the file with its output."""

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

    async def is_not_ready(self, reason: str = "") -> bool:
        """Whether the worker runs but reports itself not ready, with a reason that contains the given one."""
        assert self.exit_code is None, self.log_tail()
        try:
            status, text = await self.get("/readyz")
        except aiohttp.ClientError:
            return False  # it is not listening yet
        return status == 503 and reason in text

    async def metric(self, sample: str) -> float:
        """The value of one sample, named like `name{label="value"}`; 0 if it does not exist."""
        _, text = await self.get("/metrics")
        for line in text.splitlines():
            if line.startswith(f"{sample} "):
                return float(line.rpartition(" ")[2])
        return 0.0

    async def ended(self, *, seconds: float) -> int:
        return await asyncio.to_thread(self.wait, seconds)

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log events with this name."""
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [event for line in lines if (event := json.loads(line)).get("event") == name]


async def eventually(condition: Any, *, seconds: float = 30) -> None:
    """Waits until `condition` (plain or async) holds; fails the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        held = condition()
        if asyncio.iscoroutine(held):
            held = await held
        if held:
            return
        assert time.monotonic() < deadline, f"not within {seconds} seconds: {condition}"
        await asyncio.sleep(0.05)
