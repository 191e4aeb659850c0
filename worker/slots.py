"""How many broadcasts may be in hand at once, and how many are."""

import asyncio


class Slots:
    """`free` of them can be taken now. Whoever needs one and finds none waits for `freed`."""

    def __init__(self, slots: int) -> None:
        self.free = slots
        self.freed = asyncio.Event()
        self._asked = 0

    @property
    def full(self) -> bool:
        """Nothing is received any more until a broadcast leaves."""
        return not self.free and not self._asked

    def ask(self, most: int) -> int:
        """Takes as many as are free, `most` at most, for what a receive may bring; says how many."""
        asked = min(most, self.free)
        self.free -= asked
        self._asked += asked
        return asked

    def received(self, asked: int, broadcasts: int) -> None:
        """So many came; the other slots that were asked for are free again."""
        self._asked -= asked
        self.give_back(asked - broadcasts)

    def give_back(self, slots: int) -> None:
        self.free += slots
        if self.free:
            self.freed.set()
