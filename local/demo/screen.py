"""The demo's progress display: bars in a terminal, plain lines elsewhere."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

_FRAME_SECONDS: Final = 0.2
_LINE_SECONDS: Final = 5.0


class Screen:
    """Displays the progress of steps. A context manager that restores the cursor."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=40),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    @asynccontextmanager
    async def step(self, title: str, total: Callable[[], int], done: Callable[[], int]) -> AsyncIterator[None]:
        """Displays the block's progress, `done()` of `total()`, and polls both."""
        bar = self._bars.add_task(title, total=total())
        started_at = time.monotonic()
        showing = asyncio.create_task(self._show(bar, title, total, done))
        try:
            yield
        finally:
            showing.cancel()
            self._bars.update(bar, completed=done(), total=total(), refresh=True)
            self._bars.stop_task(bar)
            self._line(f"{title}: {done():,} of {total():,} in {time.monotonic() - started_at:.1f} s")

    async def _show(self, bar: TaskID, title: str, total: Callable[[], int], done: Callable[[], int]) -> None:
        line_at = time.monotonic() + _LINE_SECONDS
        while True:
            self._bars.update(bar, completed=done(), total=total())
            if time.monotonic() >= line_at:
                self._line(f"{title}: {done():,} of {total():,} …")
                line_at += _LINE_SECONDS
            await asyncio.sleep(_FRAME_SECONDS)

    def _line(self, text: str) -> None:
        if not self.console.is_terminal:
            self.console.print(text, markup=False)

    def stop(self) -> None:
        """Freezes the bars and puts the cursor below them."""
        self._bars.stop()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
