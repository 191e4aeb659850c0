"""`python -m gatecast.cli.top`: a live view of running workers.

Shows what is wrong, what every worker and all together do, and the broadcasts in hand. Rates and quantiles are of the
time between two polls. Ctrl-C ends it.
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
    sys.exit(
        "python -m gatecast.cli.top needs rich (pip install rich), which the worker itself and its image do without"
    )

_WIDTH_ELSEWHERE: Final = 100
"""Where there is no terminal that has one."""
_LEAST_SECONDS: Final = 0.1
_MOST_SECONDS: Final = 3600.0


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, or 1 if a snapshot shows a worker that is not ready. Ends with 2 for a wrong argument."""
    options = _parse(arguments)
    console = Console(highlight=False, record=options.svg is not None)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _WIDTH_ELSEWHERE
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
    parser.add_argument("--interval", metavar="SECONDS", type=seconds, default=1.0, help="between polls (default 1)")
    parser.add_argument("--once", action="store_true", help="poll twice, print, and exit with 1 unless all are ready")
    parser.add_argument("--svg", metavar="FILE", type=Path, help="as --once, and save the picture, too")
    return parser.parse_args(arguments)


def seconds(text: str) -> float:
    """Raises ValueError."""
    value = float(text)
    if not _LEAST_SECONDS <= value <= _MOST_SECONDS:
        raise ValueError(text)
    return value


async def _views(addresses: Sequence[str], interval_seconds: float) -> AsyncGenerator[View]:
    """One after the other, for ever."""
    before: dict[str, Poll] = {}
    async with session() as asking:
        while True:
            started_at = time.monotonic()
            now = await poll_all(asking, addresses)
            yield view(before, now)
            before = now
            await asyncio.sleep(started_at + interval_seconds - time.monotonic())


async def _snapshot(views: AsyncGenerator[View], console: Console, picture: Path | None) -> int:
    """The second view, because the first has no rates."""
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
    """Until cancelled. The last view stays on the terminal; elsewhere all are printed."""
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
