"""Who is present in a room, as far as its events say. Pure."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from gatecast.client.events import Presence

MAX_USERS: Final = 10_000
"""Users whose latest change is remembered; a room that sends presence has at most 1,000 members."""


class PresenceChanges:
    """Lets each change of a user pass that is later than those before it.

    At the same millisecond joining wins: if the user has left since, another departure follows. Lists of members are
    not considered here: their `at_ms` lets the program compare them with events.
    """

    def __init__(self, room: str, max_users: int = MAX_USERS) -> None:
        self._room = room
        self._max = max_users
        self._latest: OrderedDict[str, tuple[int, bool]] = OrderedDict()

    def receive(self, joined: Iterable[str], departed: Iterable[str], at_ms: int) -> Presence | None:
        """The part of a presence frame that is news; None if nothing is."""
        new_joined = tuple(user for user in joined if self._is_later(user, at_ms, present=True))
        new_departed = tuple(user for user in departed if self._is_later(user, at_ms, present=False))
        if not (new_joined or new_departed):
            return None
        return Presence(room=self._room, joined=new_joined, departed=new_departed, at_ms=at_ms)

    def _is_later(self, user: str, at_ms: int, *, present: bool) -> bool:
        change = (at_ms, present)
        if change <= self._latest.get(user, (-1, False)):
            return False
        self._latest[user] = change
        self._latest.move_to_end(user)
        if len(self._latest) > self._max:
            self._latest.popitem(last=False)
        return True
