"""Who may have one of the worker's places now. A broadcast holds one while it is delivered. Pure.

No kind of broadcast may take all places: a kind may take another one while it holds fewer than are free. So one room
that is flooded gets half of them, two get a third each, and whatever else arrives finds a place that is free. A kind is
a room, or what is no room's: broadcasts to connections, remainders, and dead letters that were sent again.

A broadcast that only waits for single connections *parks*: it gives its place back and stays in memory. How many may
park, and how many bytes they may hold, is bounded.
"""

from collections import Counter
from collections.abc import Callable
from typing import Final

from gatecast.broadcast import Broadcast
from worker.decisions.parts import REJECTED_PREFIX, REMAINDER_PREFIX, UNDELIVERED_PREFIX

MAX_PARKED: Final = 2_000
MAX_PARKED_BYTES: Final = 64 * 1024 * 1024


def kind_of(broadcast: Broadcast) -> str:
    """Rooms have names without spaces, so the other kinds have names with one."""
    if broadcast.part.startswith(REMAINDER_PREFIX):
        return "a remainder"
    if broadcast.part.startswith((UNDELIVERED_PREFIX, REJECTED_PREFIX)):
        return "a dead letter"
    return broadcast.room or "to connections"


class Capacity:
    """Whatever is in `on_free` is called, without arguments, when a place has become free."""

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

    def hold(self, kind: str) -> "Place":
        """Take a place. Only while there is one for this kind."""
        self._held[kind] += 1
        self.taken += 1
        return Place(self, kind)

    def _give_back(self, kind: str) -> None:
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
    """One broadcast's place, until it parks or is `released`, both of which may be repeated."""

    __slots__ = ("_capacity", "_held_bytes", "_kind", "_parked", "_released")

    def __init__(self, capacity: Capacity, kind: str) -> None:
        self._capacity = capacity
        self._kind = kind
        self._held_bytes = 0
        self._parked = False
        self._released = False

    def park(self, held_bytes: int) -> bool:
        """Give the place back and stay in memory; false if too many do already."""
        if self._parked or self._released:
            return True
        if not self._capacity._may_park(held_bytes):  # noqa: SLF001 - the two are one
            return False
        self._parked = True
        self._held_bytes = held_bytes
        self._capacity._count_parked(1, held_bytes)  # noqa: SLF001
        self._capacity._give_back(self._kind)  # noqa: SLF001
        return True

    def release(self) -> None:
        """The broadcast is done with, or will stay on the queue."""
        if self._released:
            return
        self._released = True
        if self._parked:
            self._capacity._count_parked(-1, -self._held_bytes)  # noqa: SLF001
        else:
            self._capacity._give_back(self._kind)  # noqa: SLF001
