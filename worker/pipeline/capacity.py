"""How the worker's places are shared. A broadcast holds one while it is delivered. Pure.

No kind of broadcast may take all places: a kind may reserve another one only while it holds fewer than are free. So one
flooded room gets half of them, two get a third each, and every other kind that arrives finds a free place. A kind is a
room or, each taken together, broadcasts to connections, remainders, and redriven dead letters.

A broadcast that only waits for single connections is *parked*: it releases its place and stays in memory. The number of
parked broadcasts and their memory are bounded.
"""

from collections import Counter
from collections.abc import Callable
from typing import Final

from gatecast.broadcast import Broadcast
from worker.decisions.parts import REJECTED_PREFIX, REMAINDER_PREFIX, UNDELIVERED_PREFIX

MAX_PARKED: Final = 2_000
MAX_PARKED_BYTES: Final = 64 * 1024 * 1024


def kind_of(broadcast: Broadcast) -> str:
    """The broadcast's kind. Room names contain no spaces; the names of the other kinds do."""
    if broadcast.part.startswith(REMAINDER_PREFIX):
        return "a remainder"
    if broadcast.part.startswith((UNDELIVERED_PREFIX, REJECTED_PREFIX)):
        return "a dead letter"
    return broadcast.room or "to connections"


class Capacity:
    """Every callback in `on_free` is called, without arguments, when a place has become free."""

    def __init__(self, places: int) -> None:
        self.places = places
        self.taken = 0
        self.parked = 0
        self.on_free: list[Callable[[], None]] = []
        self._held: Counter[str] = Counter()
        self._parked_bytes = 0

    @property
    def free(self) -> int:
        return self.places - self.taken

    def has_place_for(self, kind: str) -> bool:
        return self._held[kind] < self.free

    def reserve(self, kind: str) -> "Place":
        """Reserve a place. Call it only if `has_place_for` this kind."""
        self._held[kind] += 1
        self.taken += 1
        return Place(self, kind)

    def _release(self, kind: str) -> None:
        self.taken -= 1
        self._held[kind] -= 1
        if not self._held[kind]:
            del self._held[kind]
        for call in self.on_free:
            call()

    def _may_park(self, held_bytes: int) -> bool:
        return self.parked < MAX_PARKED and self._parked_bytes + held_bytes <= MAX_PARKED_BYTES

    def _count_parked(self, broadcasts: int, held_bytes: int) -> None:
        self.parked += broadcasts
        self._parked_bytes += held_bytes


class Place:
    """One broadcast's place, until it is parked or released. Both calls are idempotent."""

    __slots__ = ("_capacity", "_held_bytes", "_kind", "_parked", "_released")

    def __init__(self, capacity: Capacity, kind: str) -> None:
        self._capacity = capacity
        self._kind = kind
        self._held_bytes = 0
        self._parked = False
        self._released = False

    def park(self, held_bytes: int) -> bool:
        """Release the place but stay in memory. Returns whether the broadcast is parked: False if too many are."""
        if self._parked or self._released:
            return True
        if not self._capacity._may_park(held_bytes):  # noqa: SLF001 - one class in two parts
            return False
        self._parked = True
        self._held_bytes = held_bytes
        self._capacity._count_parked(1, held_bytes)  # noqa: SLF001
        self._capacity._release(self._kind)  # noqa: SLF001
        return True

    def release(self) -> None:
        """Release the place: the broadcast has ended on this worker."""
        if self._released:
            return
        self._released = True
        if self._parked:
            self._capacity._count_parked(-1, -self._held_bytes)  # noqa: SLF001
        else:
            self._capacity._release(self._kind)  # noqa: SLF001
