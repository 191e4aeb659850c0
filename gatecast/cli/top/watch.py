"""Polls workers and prints views: one, or all until Ctrl-C."""

import asyncio
import io
import os
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from gatecast.cli.failures import CommandFailed
from gatecast.cli.output import Output, write_json
from gatecast.cli.top.as_json import as_json
from gatecast.cli.top.fetch import poll_all, session
from gatecast.cli.top.screen import draw, save_picture
from gatecast.cli.top.view import Poll, View, view

_DEFAULT_WIDTH: Final = 100
"""Columns, if the output is no terminal and COLUMNS is not set."""


def snapshot(addresses: Sequence[str], interval_seconds: float, output: Output, picture: Path | None) -> int:
    """Print the second view, because the first has no rates. The exit code is 1 unless all workers are ready."""
    return asyncio.run(_snapshot(_views(addresses, interval_seconds), output, picture))


def watch(addresses: Sequence[str], interval_seconds: float, output: Output) -> None:
    """Print views until Ctrl-C. On a terminal, the last one stays."""
    try:
        asyncio.run(_watch(_views(addresses, interval_seconds), output))
    except KeyboardInterrupt:
        return  # how it is ended


async def _views(addresses: Sequence[str], interval_seconds: float) -> AsyncGenerator[View]:
    """Poll at the interval, and yield one view per poll, until closed."""
    before: dict[str, Poll] = {}
    async with session() as http:
        while True:
            started_at = time.monotonic()
            now = await poll_all(http, addresses)
            yield view(before, now)
            before = now
            await asyncio.sleep(started_at + interval_seconds - time.monotonic())


async def _snapshot(views: AsyncGenerator[View], output: Output, picture: Path | None) -> int:
    async with aclosing(views):
        await anext(views)
        second = await anext(views)
    as_text = output is Output.TEXT
    if not as_text:
        write_json(as_json(second))
    console = _console(record=picture is not None, file=None if as_text else io.StringIO())
    console.print(_draw(second, console))
    if picture is not None:
        try:
            save_picture(console, picture)
        except OSError as error:
            raise CommandFailed(f"the image cannot be saved ({error})", "give another file") from None
    return 0 if second.ready == len(second.workers) else 1


async def _watch(views: AsyncGenerator[View], output: Output) -> None:
    """Show views until cancelled. Without a terminal, all are printed."""
    console = _console()
    async with aclosing(views):
        if output is Output.JSON:
            async for one in views:
                write_json(as_json(one))
        if not console.is_terminal:
            async for one in views:
                console.print(_draw(one, console), Text())
        last: RenderableType = Text()
        try:
            with Live(console=console, screen=True, auto_refresh=False) as live:
                async for one in views:
                    last = _draw(one, console)
                    live.update(last, refresh=True)
        finally:
            console.print(last)


def _console(*, record: bool = False, file: IO[str] | None = None) -> Console:
    console = Console(highlight=False, record=record, file=file)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _DEFAULT_WIDTH
    return console


def _draw(one: View, console: Console) -> RenderableType:
    return draw(one, console, at=datetime.now(UTC).astimezone())
