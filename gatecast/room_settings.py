"""Rooms' settings, as they are in the table: which items apply to a room, and what they mean.

A room's settings are those of its own item, over those of its namespace's item (`settings#{prefix}/*`, with the text
before the room's first `/`), over those of the item for all rooms (`settings#*`), attribute by attribute.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from gatecast.table import lenient_number

MAX_SHARDS: Final = 1_000
MAX_HISTORY_SECONDS: Final = 7 * 24 * 3600
MAX_PRESENCE: Final = 1_000


def settings_names(room: str) -> tuple[str, ...]:
    """The names, as in `settings_pk`, of the items that determine a room's settings; each precedes those behind it."""
    prefix, slash, _ = room.partition("/")
    return (room, f"{prefix}/*", "*") if slash else (room, "*")


class SettingsItem(NamedTuple):
    """What one settings item says; None for each attribute that it does not have."""

    shards: int | None = None
    join_shards: int | None = None
    history_seconds: int | None = None
    presence: int | None = None
    receipt: bool | None = None

    @classmethod
    def from_item(
        cls, item: Mapping[str, Any] | None, on_damage: Callable[[str], object] = lambda _attribute: None
    ) -> "SettingsItem":
        """The settings in an item. Never raises: the name of each invalid attribute is passed to `on_damage`.

        An invalid number of shards is rounded down and clamped to 1–MAX_SHARDS, so that no member is missed; anything
        else that is invalid counts as the attribute's default.
        """
        if not item:
            return cls()
        return cls(
            _shard_count(item, "shards", on_damage),
            _shard_count(item, "join_shards", on_damage),
            _limited(item, "history_seconds", MAX_HISTORY_SECONDS, on_damage),
            _limited(item, "presence", MAX_PRESENCE, on_damage),
            _switch(item, "receipt", on_damage),
        )


class RoomSettings(NamedTuple):
    """A room's settings: those of its own item, over those of its namespace's item, over those of the item `*`.

    The numbers of shards that are read, and joined, may grow, never shrink: first `shards`, then `join_shards`.
    """

    shards: int = 1
    join_shards: int = 1
    history_seconds: int = 0
    """How long messages can be read again; 0 if the room has no history."""
    presence: int = 0
    """Up to how many members joins and departures are announced; 0 if members cannot be listed."""
    receipt: bool = False
    """Whether broadcasts end in a receipt, unless one has a `receipt` of its own."""

    @classmethod
    def from_items(cls, items: Iterable[SettingsItem]) -> "RoomSettings":
        """The settings of a room with these items, in the order of `settings_names`.

        They cover every shard that a member may have joined, even if the numbers are inconsistent.
        """
        found = list(items)
        first = [next((value for value in values if value is not None), None) for values in zip(*found, strict=True)]
        shards, join_shards, history_seconds, presence, receipt = first or (None,) * len(SettingsItem._fields)
        join_shards = join_shards or 1
        return cls(max(join_shards, shards or 1), join_shards, history_seconds or 0, presence or 0, receipt or False)


def _shard_count(item: Mapping[str, Any], attribute: str, on_damage: Callable[[str], object]) -> int | None:
    value = item.get(attribute)
    if value is None:
        return None
    number = lenient_number(value)
    count = 1 if number is None else int(min(max(number, 1), MAX_SHARDS))
    if not isinstance(value, Mapping) or "N" not in value or count != number:
        on_damage(attribute)
    return count


def _limited(item: Mapping[str, Any], attribute: str, maximum: int, on_damage: Callable[[str], object]) -> int | None:
    value = item.get(attribute)
    if value is None:
        return None
    number = lenient_number(value)
    if number is None or "N" not in value or not 0 <= number <= maximum or number != int(number):
        on_damage(attribute)
        return 0
    return int(number)


def _switch(item: Mapping[str, Any], attribute: str, on_damage: Callable[[str], object]) -> bool | None:
    match item.get(attribute):
        case None:
            return None
        case {"BOOL": bool(value)}:
            return value
    on_damage(attribute)
    return False
