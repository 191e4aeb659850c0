"""Round robin over groups: each group with a delivery to take gets one before any gets a second.

A group is a room, or a single broadcast that has no room. Within a group the earliest broadcast comes first, so
messages to a room are sent in order, and a burst to one room finishes one broadcast after the other. Pure.
"""

from bisect import insort
from collections import deque
from typing import Generic, Protocol, TypeVar

R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")


class Source(Protocol[R_co]):
    in_round_robin: bool

    @property
    def group(self) -> str: ...

    @property
    def order(self) -> tuple[int, int]:
        """Its position within its group; the lowest comes first."""

    def take(self) -> R_co | None:
        """The next item, or None: then the source leaves the rotation until it is added again."""


def _order(source: Source[R]) -> tuple[int, int]:
    return source.order


class RoundRobin(Generic[R]):
    def __init__(self) -> None:
        self._turns: deque[list[Source[R]]] = deque()
        self._groups: dict[str, list[Source[R]]] = {}

    def __bool__(self) -> bool:
        return bool(self._turns)

    def add(self, source: Source[R]) -> None:
        """Add a source to the rotation, unless it is already in it."""
        if source.in_round_robin:
            return
        source.in_round_robin = True
        sources = self._groups.get(source.group)
        if sources is None:
            sources = self._groups[source.group] = [source]
            self._turns.append(sources)
        else:
            insort(sources, source, key=_order)

    def take(self) -> R | None:
        """The next item of the group whose turn it is, or None if no source has any."""
        turns = self._turns
        while turns:
            sources = turns[0]
            source = sources[0]
            taken = source.take()
            if taken is not None:
                turns.rotate(-1)
                return taken
            del sources[0]
            source.in_round_robin = False
            if not sources:
                turns.popleft()
                del self._groups[source.group]
        return None
