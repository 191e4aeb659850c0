"""`gatecast room` and `gatecast rooms`: what a room is, and changes of its settings."""

import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from gatecast.cli import environment
from gatecast.cli.failures import WrongUsage, explained
from gatecast.cli.options import DryRunOption, OutputOption, YesOption, check_name
from gatecast.cli.output import Output, confirm, note, table, write, write_json
from gatecast.cli.room_settings import (
    Change,
    Setting,
    changes,
    check_growth,
    items_for,
    parse_assignments,
    value_text,
)
from gatecast.cli.room_table import (
    APPLIED_SECONDS,
    StoredSettings,
    count_members,
    grow,
    read_head,
    read_settings,
    write_settings,
)

commands = typer.Typer(help="Change the settings of rooms.", rich_markup_mode=None)
_Target = Annotated[str, typer.Argument(metavar="ROOM", help="a room, PREFIX/* for a namespace, or '*' for all rooms")]


def room(
    name: Annotated[str, typer.Argument(metavar="ROOM", help="a room's name")], output: OutputOption = Output.TEXT
) -> None:
    """Show a room: its members, its shards, its settings and where each comes from, and its head.

    Reads GATECAST_TABLE. To count the members, it reads all memberships.
    """
    check_name("ROOM", name)
    if name == "*" or name.endswith("/*"):
        raise WrongUsage(f"{name} is no room", "give the name of one room")
    names = items_for(name)
    dynamodb, table_name = _open()
    with explained():
        stored = read_settings(dynamodb, table_name, names)
        settings = stored.in_force
        members = count_members(dynamodb, table_name, name, int(settings["shards"].value), now=time.time())
        head = read_head(dynamodb, table_name, name)
    if output is Output.JSON:
        write_json({
            "room": name,
            "members": sum(members),
            "shards": members,
            "head": head,
            "settings": {field: setting._asdict() for field, setting in settings.items()},
            "damaged": [damage._asdict() for damage in stored.damage],
        })  # fmt: skip
        return
    for line in _lines(name, members, head, settings):
        write(line)
    _note_damage(stored)


@commands.command("set")
def set_(
    target: _Target,
    assignments: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME=VALUE", help="history_seconds=3600, presence=100, receipt=true; the value may be inherit"
        ),
    ],
    *,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Change settings of a room, of a namespace, or of all rooms.

    It shows what changes, and asks for a confirmation. Rooms that have a setting of their own keep it. With inherit,
    the setting is removed here, and the next more general one is in force. Reads GATECAST_TABLE.
    """
    check_name("ROOM", target, or_else=", PREFIX/* or '*'")
    names = items_for(target)
    assigned = parse_assignments(assignments)
    dynamodb, table_name = _open()
    with explained():
        stored = read_settings(dynamodb, table_name, names)
    found = changes(names, stored.items, assigned)
    damaged = {damage.attribute for damage in stored.damage if damage.item == target}
    assigned = {name: value for name, value in assigned.items() if name in damaged | {change.name for change in found}}
    if output is Output.TEXT:
        _write_changes(target, found)
    if assigned and not dry_run:
        confirm(f"change the settings of {target}?", yes=yes)
        with explained():
            write_settings(dynamodb, table_name, target, assigned, stored.own)
    written = bool(assigned) and not dry_run
    if output is Output.JSON:
        write_json({"target": target, "changes": [_as_json(change) for change in found], "written": written})
    elif written:
        write(f"written; in force everywhere within {APPLIED_SECONDS} s")


@commands.command("grow")
def grow_(
    target: _Target,
    *,
    shards: Annotated[int, typer.Option("--shards", metavar="N", help="how many; it never shrinks")],
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Give a room, the rooms of a namespace, or all rooms more shards.

    It takes a minute: new members join the new shards only when all routes and workers read them. Members keep their
    shard. Reads GATECAST_TABLE.
    """
    check_name("ROOM", target, or_else=", PREFIX/* or '*'")
    names = items_for(target)
    dynamodb, table_name = _open()
    with explained():
        stored = read_settings(dynamodb, table_name, names)
    before = stored.in_force
    check_growth(target, before, shards)
    has = {"shards": before["shards"].value, "join_shards": before["join_shards"].value}
    grows = has != {"shards": shards, "join_shards": shards}
    if output is Output.TEXT:
        write(f"{target}: {_growth(has, shards)}" if grows else f"{target} has {_shards(shards)} already")
    if grows and not dry_run:
        confirm(f"give {target} {_shards(shards)}, for ever?", yes=yes)
        with explained():
            grow(dynamodb, table_name, target, shards, stored, note=note)
    written = grows and not dry_run
    if output is Output.JSON:
        write_json({"target": target, "before": has, "shards": shards, "written": written})
    elif written:
        write(f"written; new members join one of {_shards(shards)} within {APPLIED_SECONDS} s")


def _open() -> tuple[Any, str]:
    table_name = environment.table_name()
    return environment.client("dynamodb"), table_name


def _lines(name: str, members: Sequence[int], head: int | None, settings: dict[str, Setting]) -> list[str]:
    shards = f" in {_shards(len(members))} ({min(members):,} to {max(members):,})" if len(members) > 1 else ""
    rows = [
        ("setting", "value", "from"),
        *((each, value_text(one.value), one.source) for each, one in settings.items()),
    ]
    return [
        f"room     {name}",
        f"members  {sum(members):,}{shards}",
        f"head     {'none' if head is None else head}",
        "",
        *table(rows),
    ]


def _write_changes(target: str, found: Sequence[Change]) -> None:
    if not found:
        write(f"the settings of {target} are so already")
        return
    for line in table([(change.name, _setting(change.before), "->", _setting(change.after)) for change in found]):
        write(line)


def _setting(setting: Setting) -> str:
    return f"{value_text(setting.value)} (from {setting.source})"


def _as_json(change: Change) -> dict[str, Any]:
    return {"name": change.name, "before": change.before._asdict(), "after": change.after._asdict()}


def _growth(has: dict[str, Any], shards: int) -> str:
    joined = f", of which new members join {has['join_shards']}" if has["shards"] != has["join_shards"] else ""
    return f"{_shards(has['shards'])}{joined} -> {_shards(shards)}"


def _shards(count: int) -> str:
    return f"{count:,} shard{'s' * (count != 1)}"


def _note_damage(stored: StoredSettings) -> None:
    for damage in stored.damage:
        note(f"{damage.attribute} of the settings of {damage.item} is invalid: gatecast rooms set replaces it")
