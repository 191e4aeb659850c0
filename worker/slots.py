"""How many broadcasts may be in hand at once, and how many are."""

import asyncio


class Slots:
    """`free` of them can be taken now. Whoever needs one and finds none waits for `freed`."""

    def __init__(self, slots: int) -> None:
        self.free = slots
        self.freed = asyncio.Event()

    def take(self, most: int) -> int:
        """Takes as many as are free, `most` at most, and says how many."""
        taken = min(most, self.free)
        self.free -= taken
        return taken

    def give_back(self, slots: int) -> None:
        self.free += slots
        if self.free:
            self.freed.set()
