"""`python -m gatecast.cli.top`: a live view of running workers.

It shows problems first, then the figures of each worker and their total, then the broadcasts in progress. Rates and
quantiles cover the time between two polls. Ctrl-C ends it.
"""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from gatecast.cli.top.fetch import address, poll_all, session
from gatecast.cli.top.view import Poll, View, view

try:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.text import Text

    from gatecast.cli.top.screen import draw, save_picture
except ModuleNotFoundError as missing:
    if missing.name is None or missing.name.partition(".")[0] != "rich":
        raise
    sys.exit("python -m gatecast.cli.top needs rich (pip install rich), which is not part of the worker's image")

_DEFAULT_WIDTH: Final = 100
"""Columns, if the output is no terminal and COLUMNS is not set."""
_MIN_SECONDS: Final = 0.1
_MAX_SECONDS: Final = 3600.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, or 1 if a snapshot shows a worker that is not ready. A wrong argument exits with 2."""
    options = _parse(arguments)
    console = Console(highlight=False, record=options.svg is not None)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _DEFAULT_WIDTH
    views = _views(options.workers or [address("127.0.0.1")], options.interval)
    try:
        if options.once or options.svg:
            return asyncio.run(_snapshot(views, console, options.svg))
        asyncio.run(_watch(views, console))
    except KeyboardInterrupt:
        pass
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m gatecast.cli.top", description=__doc__)
    parser.add_argument(
        "workers", metavar="URL", nargs="*", type=address, help="http://host:port or host:port (default 127.0.0.1:9090)"
    )
    parser.add_argument(
        "--interval", metavar="SECONDS", type=seconds, default=1.0, help="time between polls (default 1)"
    )
    parser.add_argument(
        "--once", action="store_true", help="poll twice, print one view, and exit with 1 unless all workers are ready"
    )
    parser.add_argument("--svg", metavar="FILE", type=Path, help="like --once, and save the view as an SVG image")
    return parser.parse_args(arguments)


def seconds(text: str) -> float:
    """Parse an interval. Raises ValueError if it is not from 0.1 to 3,600 s."""
    value = float(text)
    if not _MIN_SECONDS <= value <= _MAX_SECONDS:
        raise ValueError(text)
    return value


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


async def _snapshot(views: AsyncGenerator[View], console: Console, picture: Path | None) -> int:
    """Print the second view, because the first has no rates. Return the exit code."""
    async with aclosing(views):
        await anext(views)
        second = await anext(views)
    console.print(_draw(second, console))
    if picture is not None:
        try:
            save_picture(console, picture)
        except OSError as error:
            sys.exit(str(error))
    return 0 if second.ready == len(second.workers) else 1


async def _watch(views: AsyncGenerator[View], console: Console) -> None:
    """Show views until cancelled. On a terminal, the last one stays; without a terminal, all are printed."""
    async with aclosing(views):
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


def _draw(one: View, console: Console) -> RenderableType:
    return draw(one, console, at=datetime.now(UTC).astimezone())


if __name__ == "__main__":
    sys.exit(main())
