"""The commands of the AWS CLI in the operators' reference, executed through boto3 with the same arguments."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from gatecast.room_settings import RoomSettings, SettingsItem, settings_names
from gatecast.table import settings_pk

REFERENCE = (Path(__file__).parents[2] / "docs" / "reference-operators.md").read_text()
COMMANDS = {
    re.findall(r"settings#([^\"]+)", command)[0]: command
    for command in re.findall(r"^aws dynamodb update-item (?:.*\\\n)*.*$", REFERENCE, re.MULTILINE)
}
EXPECTED = {
    "chat/*": ("chat/1", RoomSettings(history_seconds=3_600, presence=100)),
    "lobby": ("lobby", RoomSettings(shards=8)),
}


def execute(dynamodb: Any, table: str, command: str) -> None:
    words = shlex.split(command.replace("\\\n", ""))
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert options.pop("--table-name") == "gatecast"
    arguments = {
        "".join(part.capitalize() for part in name.removeprefix("--").split("-")): value
        for name, value in options.items()
    }
    parsed = {name: json.loads(value) if value.startswith("{") else value for name, value in arguments.items()}
    dynamodb.update_item(TableName=table, **parsed)


def settings_of(dynamodb: Any, table: str, room: str) -> RoomSettings:
    keys = [{"pk": {"S": settings_pk(name)}, "sk": {"S": "room"}} for name in settings_names(room)]
    items = [dynamodb.get_item(TableName=table, Key=key).get("Item") for key in keys]
    return RoomSettings.from_items(map(SettingsItem.from_item, items))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_documented_command_has_the_documented_effect(dynamodb: Any, table: str, name: str) -> None:
    room, expected = EXPECTED[name]
    assert settings_of(dynamodb, table, room) == RoomSettings()
    for _ in range(2):
        execute(dynamodb, table, COMMANDS[name])
        assert settings_of(dynamodb, table, room) == expected
        assert settings_of(dynamodb, table, "another") == RoomSettings()


def test_every_command_is_executed() -> None:
    assert COMMANDS.keys() == EXPECTED.keys()
