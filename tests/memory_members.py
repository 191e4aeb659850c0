"""An in-memory table of the operator's own: `ForeignMembers` whose order has nothing to do with connection ids.

Each item has a key of its own, so a connection may have several in one room.
"""

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from gatecast.room_settings import SettingsItem
from tests.memory_stores import BeforeCall, MemoryTable, no_cost
from worker.decisions.locator import Locator, prefix
from worker.ports import Connection, DependencyError, Member, Page


class ForeignItem(NamedTuple):
    """An item, and when the connection joined, in milliseconds since the epoch; 0 if that is not known."""

    room: str
    number: int
    connection_id: str
    joined_at_ms: int


class ForeignItems:
    """The items, by room and number. Pages are in the order of the numbers."""

    def __init__(self) -> None:
        self._items: dict[str, dict[int, ForeignItem]] = {}

    def add(self, room: str, joined: Mapping[str, int], numbers: Iterable[int]) -> None:
        """Add an item per connection, with these numbers. The values are when each has joined."""
        for (each, joined_at_ms), number in zip(joined.items(), numbers, strict=False):
            self._items.setdefault(room, {})[number] = ForeignItem(room, number, each, joined_at_ms)

    def in_room(self, room: str) -> list[ForeignItem]:
        items = self._items.get(room, {})
        return [items[number] for number in sorted(items)]

    def remove(self, room: str, number: int, connection_id: str) -> None:
        item = self._items.get(room, {}).get(number)
        if item is not None and item.connection_id == connection_id:
            del self._items[room][number]


class MemoryMembers:
    """`ForeignMembers` on ForeignItems. Settings are in `own`, Gatecast's table."""

    def __init__(
        self,
        items: ForeignItems,
        own: MemoryTable,
        *,
        name: str = "members",
        before_call: BeforeCall = no_cost,
        page_members: int = 300,
    ) -> None:
        self.prefix: Final = prefix(name)
        self._items = items
        self._own = own
        self._before_call = before_call
        self._page_members = page_members

    def begin_page(self, room: str, shard: int, after: str = "") -> Awaitable[Page]:
        assert not after or after.startswith(self.prefix), "a cursor of another table"
        page = asyncio.create_task(self._page("" if shard else room, after))
        page.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return page

    async def _page(self, room: str, after: str) -> Page:
        await self._before_call("table", "begin_page")
        number = int(Locator.decode(after).attributes["number"]["N"]) if after else -1
        following = [item for item in self._items.in_room(room) if item.number > number]
        items = following[: self._page_members]
        members: dict[str, Member] = {}
        for item in items:
            members.setdefault(
                item.connection_id, Member(item.connection_id, item.joined_at_ms, locator=self._locator(item))
            )
        last = self._locator(items[-1]) if len(following) > len(items) else None
        return Page(list(members.values()), last)

    def _locator(self, item: ForeignItem) -> str:
        return Locator({"number": {"N": str(item.number)}}).encode(self.prefix)

    async def settings(self, names: Sequence[str]) -> Sequence[SettingsItem | DependencyError]:
        return await self._own.settings(names)

    async def connections(self, connection_ids: Sequence[str]) -> dict[str, Connection]:
        del connection_ids
        return {}

    async def delete(self, connection_id: str, found_in: tuple[str, int] | None, locator: str) -> bool:
        await self._before_call("table", "delete_batch")
        if not locator or found_in is None:
            return False
        number = int(Locator.decode(locator).attributes["number"]["N"])
        self._items.remove(found_in[0], number, connection_id)
        return True
