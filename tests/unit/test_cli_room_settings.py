"""What operators write into rooms' settings: parsed, checked, compared, and written in a safe order."""

from typing import Any

import pytest
from botocore.exceptions import ClientError

from gatecast import table as keys
from gatecast.cli.failures import CommandFailed, Interrupted, WrongUsage
from gatecast.cli.room_settings import (
    Change,
    Setting,
    changes,
    check_growth,
    in_force,
    items_for,
    parse_assignments,
)
from gatecast.cli.room_table import APPLIED_SECONDS, StoredSettings, grow, read_settings, write_settings
from gatecast.room_settings import SettingsItem


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("lobby", ("lobby", "*")),
        ("chat/one", ("chat/one", "chat/*", "*")),
        ("chat/*", ("chat/*", "*")),
        ("*", ("*",)),
        ("@all", ("@all", "*")),
    ],
)
def test_the_items_that_apply_to_a_target(target: str, names: tuple[str, ...]) -> None:
    assert items_for(target) == names


def test_each_setting_has_the_source_that_decides() -> None:
    items = (
        SettingsItem(history_seconds=0, shards=2),
        SettingsItem(history_seconds=60, presence=5, join_shards=4),
        SettingsItem(presence=7, receipt=True),
    )
    assert in_force(("a/b", "a/*", "*"), items) == {
        "shards": Setting(4, "a/*"),  # as many as are joined, or members would be missed
        "join_shards": Setting(4, "a/*"),
        "history_seconds": Setting(0, "a/b"),
        "presence": Setting(5, "a/*"),
        "receipt": Setting(True, "*"),
    }
    assert in_force(("a",), (SettingsItem(),))["receipt"] == Setting(False, "default")


def test_assignments() -> None:
    assert parse_assignments(["history_seconds=604800", "presence=0", "receipt=true"]) == {
        "history_seconds": 604_800,
        "presence": 0,
        "receipt": True,
    }
    assert parse_assignments(["receipt=inherit", "presence=inherit"]) == {"receipt": None, "presence": None}


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("history_seconds", "is no setting: give NAME=VALUE"),
        ("history_seconds=", "from 0 to 604,800"),
        ("history_seconds=604801", "from 0 to 604,800"),
        ("history_seconds=-1", "from 0 to 604,800"),
        ("history_seconds=1.5", "from 0 to 604,800"),
        ("history_seconds=007", "from 0 to 604,800"),
        ("presence=1001", "from 0 to 1,000"),
        ("receipt=yes", "give true, false or inherit"),
        ("history_secs=60", "did you mean history_seconds?"),
        ("x=1", "there are history_seconds, presence, receipt"),
        ("shards=4", "gatecast rooms grow"),
        ("join_shards=inherit", "gatecast rooms grow"),
    ],
)
def test_what_is_no_assignment(assignment: str, says: str) -> None:
    with pytest.raises(WrongUsage) as wrong:
        parse_assignments([assignment])
    assert says in str(wrong.value)


def test_a_setting_that_is_given_twice() -> None:
    with pytest.raises(WrongUsage, match="presence is given twice"):
        parse_assignments(["presence=1", "presence=2"])


def test_changes_show_what_is_in_force_before_and_after() -> None:
    names, items = ("a/b", "a/*", "*"), (SettingsItem(presence=5), SettingsItem(history_seconds=60), SettingsItem())
    assert changes(names, items, {"history_seconds": 0, "presence": None, "receipt": False}) == [
        Change("history_seconds", Setting(60, "a/*"), Setting(0, "a/b")),
        Change("presence", Setting(5, "a/b"), Setting(0, "default")),
        Change("receipt", Setting(False, "default"), Setting(False, "a/b")),
    ]
    assert not changes(names, items, {"presence": 5, "receipt": None})


def test_a_number_of_shards_never_shrinks() -> None:
    current = in_force(("a",), (SettingsItem(shards=4, join_shards=2),))
    check_growth("a", current, 4)
    with pytest.raises(WrongUsage, match="a has 4 shards, and would have 3: a number of shards never shrinks"):
        check_growth("a", current, 3)
    for wrong in (0, 1_001):
        with pytest.raises(WrongUsage, match="from 1 to 1,000"):
            check_growth("a", current, wrong)


class FakeTable:
    """One settings item, and the updates that it received, as a client of DynamoDB."""

    def __init__(self, **attributes: Any) -> None:
        self.attributes = attributes
        self.updates: list[dict[str, Any]] = []
        self.conflicts = False

    def update_item(self, **update: Any) -> None:
        if self.conflicts:
            raise ClientError({"Error": {"Code": "ConditionalCheckFailedException"}}, "UpdateItem")
        self.updates.append(update)

    def stored(self) -> StoredSettings:
        item = {"pk": {"S": "settings#a"}, "sk": {"S": "room"}, **self.attributes}
        return StoredSettings(("a", "*"), (SettingsItem.from_item(item), SettingsItem()), item, ())

    def written(self) -> list[tuple[dict[str, Any], str]]:
        """Per update: the values by attribute, and the condition with its names."""
        found = []
        for update in self.updates:
            names, values = update["ExpressionAttributeNames"], update["ExpressionAttributeValues"]
            new = {names[f"#{key[4:]}"]: value for key, value in values.items() if key.startswith(":new")}
            condition = update["ConditionExpression"]
            for key, name in names.items():
                condition = condition.replace(key, name)
            found.append((new, condition))
        return found


def test_growing_reads_the_new_shards_before_members_join_them() -> None:
    table = FakeTable(shards={"N": "2"})
    steps: list[object] = []

    def sleep(seconds: float) -> None:
        steps.append((seconds, len(table.updates)))

    grow(table, "gatecast", "a", 8, table.stored(), note=steps.append, sleep=sleep)

    eight = {"N": "8"}
    assert table.written() == [
        ({"shards": eight}, "shards = :old0"),
        ({"shards": eight, "join_shards": eight}, "shards = :old0 AND attribute_not_exists(join_shards)"),
    ]
    assert table.updates[0]["ExpressionAttributeValues"][":old0"] == {"N": "2"}
    assert table.updates[1]["ExpressionAttributeValues"][":old0"] == eight
    assert steps == ["waiting 60 s, until all routes and workers read 8 shards", (APPLIED_SECONDS, 1)]


def test_growing_that_was_interrupted_is_finished_by_the_same_call() -> None:
    table = FakeTable(shards={"N": "2"}, join_shards={"N": "2"})

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(
        Interrupted, match="a is read in 8 shards, but new members may still join 2: that does no harm"
    ) as it:
        grow(table, "gatecast", "a", 8, table.stored(), note=lambda _: None, sleep=interrupt)
    assert it.value.code == 130
    assert len(table.updates) == 1

    again = FakeTable(shards={"N": "8"}, join_shards={"N": "2"})
    waited: list[float] = []
    grow(again, "gatecast", "a", 8, again.stored(), note=lambda _: None, sleep=waited.append)
    assert [values for values, _ in again.written()] == [{"shards": {"N": "8"}, "join_shards": {"N": "8"}}]
    assert waited == [APPLIED_SECONDS], "when the first step was made is not known"


def test_a_change_by_somebody_else_is_not_overwritten() -> None:
    table = FakeTable()
    table.conflicts = True
    with pytest.raises(CommandFailed, match="the settings of a have changed meanwhile"):
        write_settings(table, "gatecast", "a", {"presence": 1}, {})


def test_attributes_are_removed_and_written_in_one_call() -> None:
    table = FakeTable(presence={"N": "5"})
    write_settings(table, "gatecast", "a", {"presence": None, "receipt": True}, table.stored().own)
    [update] = table.updates
    assert update["UpdateExpression"] == "SET #1 = :new1 REMOVE #0"
    assert update["ConditionExpression"] == "#0 = :old0 AND attribute_not_exists(#1)"
    assert update["ExpressionAttributeValues"] == {":new1": {"BOOL": True}, ":old0": {"N": "5"}}
    assert update["Key"] == keys.key("settings#a", "room")
    write_settings(table, "gatecast", "a", {"receipt": None}, {})
    assert "ExpressionAttributeValues" not in table.updates[1]


class Reluctant:
    """A client of DynamoDB that leaves keys unprocessed `times`."""

    def __init__(self, times: int) -> None:
        self.times = times

    def batch_get_item(self, RequestItems: dict[str, Any]) -> dict[str, Any]:  # noqa: N803 - the SDK's name
        if self.times:
            self.times -= 1
            return {"Responses": {}, "UnprocessedKeys": RequestItems}
        item = {"pk": {"S": "settings#*"}, "sk": {"S": "room"}, "presence": {"S": "many"}, "receipt": {"BOOL": True}}
        return {"Responses": {"gatecast": [item]}}


def test_settings_that_are_left_unprocessed_are_read_again() -> None:
    stored = read_settings(Reluctant(2), "gatecast", ("a", "*"))
    assert stored.in_force["receipt"] == Setting(True, "*")
    assert [tuple(each) for each in stored.damage] == [("*", "presence")]
    with pytest.raises(CommandFailed, match="unprocessed"):
        read_settings(Reluctant(100), "gatecast", ("a", "*"))
