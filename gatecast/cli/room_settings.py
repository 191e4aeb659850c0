"""What operators write into rooms' settings: parsed, checked, and compared with what is there. Pure.

A *target* is what a settings item is for: a room, a namespace (`prefix/*`) or all rooms (`*`).
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from gatecast.cli.failures import WrongUsage
from gatecast.room_settings import (
    MAX_HISTORY_SECONDS,
    MAX_PRESENCE,
    MAX_SHARDS,
    RoomSettings,
    SettingsItem,
    settings_names,
)

Value = int | bool
INHERIT: Final = "inherit"
DEFAULT: Final = "default"
_NUMBERS: Final = {"history_seconds": MAX_HISTORY_SECONDS, "presence": MAX_PRESENCE}
_SWITCHES: Final = {"receipt"}
_SHARDS: Final = {"shards", "join_shards"}
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,6}")


class Setting(NamedTuple):
    """A setting's value, and where it comes from: the name of a settings item, or DEFAULT."""

    value: Value
    source: str


class Change(NamedTuple):
    """What becomes of a target's setting. `after` is what is in force then, by itself or from another item."""

    name: str
    before: Setting
    after: Setting


def items_for(target: str) -> tuple[str, ...]:
    """The names of the settings items that apply to a target, its own first."""
    return tuple(dict.fromkeys((target, *settings_names(target)[1:])))


def in_force(names: Sequence[str], items: Sequence[SettingsItem]) -> dict[str, Setting]:
    """Each setting of a target with these items, in the same order as their names."""
    settings = RoomSettings.from_items(items)._asdict()
    found: dict[str, Setting] = {}
    for field in SettingsItem._fields:
        values = [getattr(item, field) for item in items]
        source = next((name for name, value in zip(names, values, strict=True) if value is not None), DEFAULT)
        found[field] = Setting(settings[field], source)
    if found["shards"].value != _first(items, "shards"):  # more shards are joined than the setting says
        found["shards"] = found["shards"]._replace(source=found["join_shards"].source)
    return found


def parse_assignments(assignments: Sequence[str]) -> dict[str, Value | None]:
    """The settings in `name=value`, …; None for `inherit`. Raises WrongUsage."""
    found: dict[str, Value | None] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise WrongUsage(f"{assignment!r} is no setting", "give NAME=VALUE, such as history_seconds=3600")
        if name in found:
            raise WrongUsage(f"{name} is given twice", "give it once")
        found[name] = None if text == INHERIT and name in {*_NUMBERS, *_SWITCHES} else _parse(name, text)
    return found


def changes(names: Sequence[str], items: Sequence[SettingsItem], assigned: Mapping[str, Value | None]) -> list[Change]:
    """What the assignments change in a target's own item, which is the first."""
    own = SettingsItem(**{**items[0]._asdict(), **assigned})
    before, after = in_force(names, items), in_force(names, (own, *items[1:]))
    return [
        Change(name, before[name], after[name]) for name in assigned if getattr(items[0], name) != getattr(own, name)
    ]


def check_growth(target: str, current: Mapping[str, Setting], shards: int) -> None:
    """Raises WrongUsage if a target with these settings cannot have this number of shards."""
    if not 1 <= shards <= MAX_SHARDS:
        raise WrongUsage(f"--shards is {shards}", f"give a number from 1 to {MAX_SHARDS:,}")
    if shards < current["shards"].value:
        raise WrongUsage(
            f"{target} has {current['shards'].value} shards, and would have {shards}",
            "a number of shards never shrinks: members on the others would be missed",
        )


def attribute(value: Value) -> dict[str, Any]:
    """The value in DynamoDB's format."""
    return {"BOOL": value} if isinstance(value, bool) else {"N": str(value)}


def value_text(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _parse(name: str, text: str) -> Value:
    if name in _SHARDS:
        raise WrongUsage(f"{name} cannot be set by itself", "grow the room: gatecast rooms grow ROOM --shards N")
    if name in _SWITCHES:
        if text not in {"true", "false"}:
            raise WrongUsage(f"{name} is {text!r}", f"give true, false or {INHERIT}")
        return text == "true"
    if name not in _NUMBERS:
        known = [*_NUMBERS, *_SWITCHES]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise WrongUsage(f"{name!r} is no setting", f"there are {', '.join(known)}{hint}")
    if not _NUMBER.fullmatch(text) or int(text) > _NUMBERS[name]:
        raise WrongUsage(f"{name} is {text!r}", f"give a number from 0 to {_NUMBERS[name]:,}, or {INHERIT}")
    return int(text)


def _first(items: Sequence[SettingsItem], field: str) -> Value:
    return next((value for item in items if (value := getattr(item, field)) is not None), 1)
