"""Waiting for state to change."""

import asyncio
from collections.abc import Callable


class Signal:
    """Wakes the tasks that wait for a condition. The code that changes the state calls `notify`."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        for each in self._waiting:
            if not each.done():
                each.set_result(None)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Returns when the condition holds; it is checked at once, and after each `notify`."""
        while not condition():
            await self.changed()

    async def changed(self) -> None:
        """Returns at the next `notify`."""
        woken = asyncio.get_running_loop().create_future()
        self._waiting.add(woken)
        try:
            await woken
        finally:
            self._waiting.discard(woken)


class Gate(Signal):
    """Whether sockets may be read: not while a buffer that is full keeps it shut."""

    def __init__(self) -> None:
        super().__init__()
        self._shut_by: set[object] = set()

    @property
    def is_open(self) -> bool:
        return not self._shut_by

    def shut(self, by: object) -> None:
        self._shut_by.add(by)

    def release(self, by: object) -> None:
        if by in self._shut_by:
            self._shut_by.discard(by)
            self.notify()
