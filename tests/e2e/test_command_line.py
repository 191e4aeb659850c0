"""The command line beside a running stack: what is published is seen to arrive, and who is kicked is gone."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from local.backend import prepare_backend
from local.ministack import Ministack
from local.stack import Stack

CHECKOUT = Path(__file__).parents[2]


async def start(stack: Stack, *arguments: str) -> asyncio.subprocess.Process:
    """`gatecast` with these arguments, in the environment of the stack."""
    environment = {
        "PATH": os.environ["PATH"],
        **stack.backend.environment(),
        "GATECAST_CONNECTIONS_ENDPOINT": stack.gateway.endpoint,
    }
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gatecast.cli", *arguments, cwd=CHECKOUT, env=environment,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def run(stack: Stack, *arguments: str) -> Any:
    """The JSON that it prints."""
    process = await start(stack, *arguments, "--output", "json")
    out, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"")
    return json.loads(out)


class Tail:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        assert process.stdout is not None
        assert process.stderr is not None
        self._out, self._errors = process.stdout, process.stderr

    async def next(self) -> Any:
        return json.loads(await asyncio.wait_for(self._out.readline(), 30))

    async def note(self) -> str:
        return (await asyncio.wait_for(self._errors.readline(), 30)).decode().rstrip()

    async def ended(self) -> int | None:
        await asyncio.wait_for(self.process.wait(), 30)
        return self.process.returncode


@asynccontextmanager
async def tailing(stack: Stack, *arguments: str) -> AsyncIterator[Tail]:
    process = await start(stack, "tail", "lobby", stack.gateway.url, *arguments)
    try:
        tail = Tail(process)
        assert await tail.note() == "joined lobby"
        yield tail
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_what_is_published_is_seen_to_arrive_also_after_a_reconnect(
    ministack: Ministack, aws: dict[str, str], unique_name: str
) -> None:
    del aws
    base = prepare_backend(ministack, table=unique_name, queue=unique_name)
    async with Stack.running(on=base, room_settings={"history_seconds": 600}) as stack:
        async with tailing(stack, "--output", "json") as tail:
            text = await run(stack, "publish", "lobby", "hello\x1b[2J")
            first = await tail.next()
            assert (first["type"], first["room"], first["id"]) == ("message", "lobby", text["id"])
            assert first["data"] == "hello\x1b[2J"

            found = await run(stack, "room", "lobby")
            assert (found["members"], found["head"]) == (1, first["offset"])

            [connection] = stack.gateway.connections
            stack.gateway.drop(connection)
            value = await run(stack, "publish", "lobby", "--json", '{"price": 12.50}')
            assert (await tail.note()).endswith("; retrying")
            events = [await tail.next(), await tail.next()]
            [recovered] = [event for event in events if event["type"] == "recovered"]
            assert recovered["recovered"]
            [second] = [event for event in events if event["type"] == "message"]
            assert (second["id"], second["json"], second["offset"]) == (
                value["id"],
                {"price": 12.5},
                first["offset"] + 1,
            )

            tail.process.send_signal(signal.SIGINT)
            assert await tail.ended() == 0

        async with tailing(stack, "--last", "2", "--count", "2") as tail:
            out, _ = await tail.process.communicate()
            assert await tail.ended() == 0
            lines = out.decode().splitlines()
            assert lines[0].startswith(f"{first['offset']}  ")
            assert lines[0].endswith("  hello\\x1b[2J")
            assert lines[1].endswith('  {"price": 12.50}')

        async with tailing(stack) as tail:
            await run(stack, "kick", "--room", "lobby", "--code", "closed-for-today", "--yes")
            assert await tail.ended() == 1
            assert await tail.note() == "gatecast: the server has closed the connection for good (closed-for-today)"


async def test_the_set_up_of_the_local_stack_is_right(
    ministack: Ministack, aws: dict[str, str], unique_name: str
) -> None:
    del aws
    base = prepare_backend(ministack, table=unique_name, queue=unique_name)
    async with Stack.running(on=base, workers=0) as stack:
        for role in ("worker", "publisher", "operator"):
            report = await run(stack, "doctor", "--role", role)
            assert report["ok"]
            assert not [each for each in report["findings"] if each["state"] == "warning"]
