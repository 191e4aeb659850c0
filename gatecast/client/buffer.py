"""Events that wait for the program. A full buffer stops the reading of sockets."""

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

from gatecast.client.signal import Gate, Signal

Event = TypeVar("Event")


class Buffer(Generic[Event]):
    """A queue for one reader or several, which shuts the gate while it has `max_events` or more."""

    def __init__(self, max_events: int, gate: Gate) -> None:
        self._events: deque[Event] = deque()
        self._max = max_events
        self._gate = gate
        self._changed = Signal()
        self._closed = False
        self._error: Exception | None = None

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[Event]:
        """The events that wait, the next one first."""
        return iter(self._events)

    @property
    def is_full(self) -> bool:
        return len(self._events) >= self._max

    @property
    def is_over(self) -> bool:
        """Whether sockets were read nevertheless, for a response, and nothing more may be added."""
        return len(self._events) >= 2 * self._max

    @property
    def latest(self) -> Event | None:
        """The event that was added last, if it has not been read."""
        return self._events[-1] if self._events else None

    def replace_latest(self, event: Event) -> None:
        self._events[-1] = event

    def append(self, event: Event) -> None:
        if self._closed:
            return
        self._events.append(event)
        if self.is_full:
            self._gate.shut(self)
        self._changed.notify()

    def close(self, error: Exception | None = None) -> None:
        """Readers take what is there; then `get` raises the error, or StopAsyncIteration without one."""
        if not self._closed:
            self._closed, self._error = True, error
            self._gate.release(self)
            self._changed.notify()

    async def get(self) -> Event:
        await self._changed.until(lambda: bool(self._events) or self._closed)
        if not self._events:
            raise self._error or StopAsyncIteration
        event = self._events.popleft()
        if not self.is_full:
            self._gate.release(self)
        return event
