"""Taking turns: every broadcast that has something to deliver gets one delivery in before any gets a second. Pure."""

from collections import deque
from typing import Generic, Protocol, TypeVar

R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")


class Source(Protocol[R_co]):
    in_rotation: bool

    def take(self) -> R_co | None:
        """The next one, or None: then it leaves the rotation until it is added again."""


class Rotation(Generic[R]):
    def __init__(self) -> None:
        self._sources: deque[Source[R]] = deque()

    def __bool__(self) -> bool:
        return bool(self._sources)

    def add(self, source: Source[R]) -> None:
        """Let a source take part (again). It may be in already."""
        if not source.in_rotation:
            source.in_rotation = True
            self._sources.append(source)

    def take(self) -> R | None:
        sources = self._sources
        while sources:
            source = sources[0]
            taken = source.take()
            if taken is not None:
                sources.rotate(-1)
                return taken
            sources.popleft()
            source.in_rotation = False
        return None
