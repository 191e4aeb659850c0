"""A join of several rooms: what is left of it after each response of DynamoDB. Pure.

All rooms are written in one transaction. If it is cancelled, DynamoDB names the conditions that failed: rooms of which
the connection is a member already are left out of the next attempt, and of the others only as many are in it as the
connection may still join.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Final, NamedTuple

from gatecast.rooms.actions import JOINED_ROOM, Action
from gatecast.table import Item

CONDITION_FAILED: Final = "ConditionalCheckFailed"
MAX_ROOMS_PER_TRANSACTION: Final = 33
"""A transaction has at most 100 actions: one for the connection, and up to three per room."""


class Reason(NamedTuple):
    """Why a transaction was cancelled: of each action a failed condition, a conflict, or "None"."""

    code: str
    item: Item | None = None
    """The item for which the condition failed, if the action asks for it."""


class RoomsToJoin:
    """`actions` has, by room, those of the transaction, as `Actions.join` returns them."""

    def __init__(self, actions: Mapping[str, Sequence[Action]]) -> None:
        self._actions = actions
        self._allowed = len(actions)
        self._pending = list(actions)
        self.joined: list[str] = []
        self.members_already: dict[str, Item | None] = {}
        """The rooms of which the connection was a member, with its joined-room item."""

    @property
    def next_rooms(self) -> list[str]:
        """The rooms of the next transaction; none if there is nothing left to write."""
        return self._pending[: self._allowed]

    @property
    def too_many(self) -> list[str]:
        """The rooms that exceed the connection's limit."""
        return self._pending[self._allowed :]

    @property
    def next_actions(self) -> list[Action]:
        """The actions of `next_rooms`, in order, to which the reasons of `cancelled` refer."""
        return [action for room in self.next_rooms for action in self._actions[room]]

    def succeeded(self) -> None:
        """The transaction of `next_rooms` is written."""
        self.joined, self._pending, self._allowed = self.next_rooms, self.too_many, 0

    def cancelled(self, reasons: Sequence[Reason], free_rooms: int | None) -> bool:
        """The transaction of `next_rooms` is cancelled. Whether the next one is smaller: there is no need to wait.

        `free_rooms`: how many rooms the connection may still join, if the condition on their number failed.
        """
        attempted = self.next_rooms
        remaining = iter(reasons)
        for room in attempted:
            for reason in list(islice(remaining, len(self._actions[room])))[JOINED_ROOM:][:1]:
                if reason.code == CONDITION_FAILED:
                    self._pending.remove(room)
                    self.members_already[room] = reason.item
        self._allowed = self._allowed if free_rooms is None else free_rooms
        return len(self.next_rooms) < len(attempted)
