"""The emulator's clock: the machine's, until a test advances it.

All durations of the API are measured with it: idle and life time, integration timeouts, throttles, latency and faults.
Signatures are dated by the caller's clock, so that they are verified with the machine's.
"""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

_MS_PER_SECOND: Final = 1_000
_NS_PER_MS: Final = 1_000_000


class Timer:
    """A call that is due at a time. `cancel` prevents it."""

    __slots__ = ("_callback", "_clock", "_handle", "due_at")

    def __init__(self, clock: "Clock", due_at: float, callback: Callable[[], None]) -> None:
        self._clock = clock
        self._callback = callback
        self.due_at = due_at
        delay = max(0.0, due_at - clock.monotonic())
        self._handle = asyncio.get_running_loop().call_later(delay, self.fire)

    def fire(self) -> None:
        """Makes the call, unless it was made or cancelled before."""
        if self._clock.forget(self):
            self._handle.cancel()
            self._callback()

    def cancel(self) -> None:
        self._clock.forget(self)
        self._handle.cancel()

    def reschedule(self) -> None:
        """Adapts to a clock that was advanced."""
        self._handle.cancel()
        delay = max(0.0, self.due_at - self._clock.monotonic())
        self._handle = asyncio.get_running_loop().call_later(delay, self.fire)


class Clock:
    """A clock that can be advanced. Its timers need a running event loop."""

    def __init__(self) -> None:
        self._ahead_seconds = 0.0
        self._timers: set[Timer] = set()

    def monotonic(self) -> float:
        """Seconds, for durations."""
        return time.monotonic() + self._ahead_seconds

    def now_ms(self) -> int:
        """Milliseconds since the epoch."""
        return time.time_ns() // _NS_PER_MS + int(self._ahead_seconds * _MS_PER_SECOND)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(self, self.monotonic() + seconds, callback)
        self._timers.add(timer)
        return timer

    async def sleep(self, seconds: float) -> None:
        await self.wait(asyncio.get_running_loop().create_future(), seconds)

    async def wait(self, future: "asyncio.Future[Any]", seconds: float) -> bool:
        """Waits until the future is done or the time has passed. Whether it is done; otherwise it continues."""
        passed = asyncio.get_running_loop().create_future()
        timer = self.call_later(seconds, partial(passed.set_result, None))
        try:
            await asyncio.wait((future, passed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
        return future.done()

    def advance(self, seconds: float) -> None:
        """Lets this time pass at once: the calls that become due are made before it returns, in their order.

        Raises ValueError if it is negative.
        """
        if seconds < 0:
            raise ValueError("time can only be advanced")
        self._ahead_seconds += seconds
        now = self.monotonic()
        for timer in sorted(self._timers, key=lambda each: each.due_at):
            if timer.due_at <= now:
                timer.fire()
            else:
                timer.reschedule()

    def forget(self, timer: Timer) -> bool:
        """Whether the timer was still pending; it no longer is."""
        if timer not in self._timers:
            return False
        self._timers.remove(timer)
        return True
