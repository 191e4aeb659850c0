"""Received messages that wait for a place: in memory, cheaply, and not many. Pure.

What has no place waits with others of its kind, in the order in which it came; kinds take turns when places become
free. More than `MAX_WAITING` works, or more bytes than `MAX_WAITING_BYTES`, do not wait here but go back to the queue.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from worker.pipeline.capacity import Capacity, Place

MAX_WAITING: Final = 500
MAX_WAITING_BYTES: Final = 32 * 1024 * 1024

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Work(Generic[T]):
    """What takes one place: a message or, on a FIFO queue, messages of one group one after the other."""

    item: T
    kind: str
    size: int
    """Bytes."""


class Admission(Generic[T]):
    """Calls `start` for each work as soon as there is a place for its kind. It must not raise."""

    def __init__(self, capacity: Capacity, start: Callable[[T, Place], None]) -> None:
        self._capacity = capacity
        self._start = start
        self._waiting: dict[str, deque[Work[T]]] = {}
        self._count = 0
        self._bytes = 0
        self._closed = False
        capacity.on_free.append(self._start_waiting)

    def __len__(self) -> int:
        """Works that wait."""
        return self._count

    def offer(self, work: Work[T]) -> bool:
        """Start it, or let it wait; false if too many wait already: it has to go back."""
        if self._closed:
            return False
        if work.kind not in self._waiting and self._capacity.has_place_for(work.kind):
            self._begin(work)
            return True
        if self._count >= MAX_WAITING or self._bytes + work.size > MAX_WAITING_BYTES:
            return False
        self._waiting.setdefault(work.kind, deque()).append(work)
        self._count += 1
        self._bytes += work.size
        return True

    def close(self) -> Iterator[T]:
        """Start nothing more. What has waited so far comes back."""
        self._closed = True
        waiting, self._waiting = self._waiting, {}
        self._count = self._bytes = 0
        for works in waiting.values():
            for work in works:
                yield work.item

    def _begin(self, work: Work[T]) -> None:
        self._start(work.item, self._capacity.hold(work.kind))

    def _start_waiting(self) -> None:
        """One of each kind in turn. A place that has become free makes room for one more at most, so once is enough."""
        for kind in list(self._waiting):
            if not self._capacity.free:
                return
            if self._capacity.has_place_for(kind):
                works = self._waiting.pop(kind)
                work = works.popleft()
                if works:
                    self._waiting[kind] = works  # behind the others
                self._count -= 1
                self._bytes -= work.size
                self._begin(work)
