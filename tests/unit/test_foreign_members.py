"""How members are read from a table of the operator's own, damaged items included. A scripted service responds."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from gatecast.room_settings import SettingsItem
from worker.aws.errors import ServiceError
from worker.aws.foreign_members import ForeignTable, find_keys
from worker.aws.json_service import JsonService
from worker.aws.table import Table
from worker.decisions.locator import Locator
from worker.members_check import MembersKeys, assumed_keys
from worker.members_setting import InvalidMembers, MembersSource
from worker.observe.damaged_items import DamagedItems
from worker.ports import DependencyError, Member

NOW = 1_800_000_000.0
NOW_MS = int(NOW * 1000)
SETTING: Mapping[str, Any] = {
    "table": "connections",
    "pk": "room",
    "pk_value": "room#{room}",
    "sk": "id",
    "expires_at": "ttl",
    "joined_at_ms": "joined",
}
SINGLE_TABLE: Mapping[str, Any] = {**SETTING, "pk": "PK", "pk_value": "CHANNEL#{room}", "sk": "SK", "sk_prefix": "C#"}
INDEX: Mapping[str, Any] = {**SETTING, "index": "byRoom", "sk": "joined", "connection_id": "id"}
QUEUE_URL = "https://sqs.eu-west-1.amazonaws.com/123456789012/gone"


class Service:
    """Returns the scripted responses in turn."""

    def __init__(self, *responses: Any) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self._responses = list(responses)

    async def call(self, operation: str, body: bytes) -> bytes:
        self.calls.append((operation, json.loads(body)))
        return json.dumps(self._responses.pop(0)).encode()

    def begin(self, operation: str, body: bytes) -> "asyncio.Task[bytes]":
        return asyncio.create_task(self.call(operation, body))


def members(
    setting: Mapping[str, Any], *responses: Any, keys: MembersKeys | None = None, damaged: dict[str, int] | None = None
) -> tuple[ForeignTable, Service]:
    service = Service(*responses)
    source = MembersSource.parse(json.dumps(setting))
    items = DamagedItems({} if damaged is None else damaged)
    json_service = cast("JsonService", service)
    own = Table(json_service, "gatecast", wall_clock=lambda: NOW, damaged=items)
    found = keys or assumed_keys(source)
    return ForeignTable(json_service, own, source, found, wall_clock=lambda: NOW, damaged=items), service


def item(connection_id: str, **attributes: Any) -> dict[str, Any]:
    return {"id": {"S": connection_id}, **attributes}


def number(value: float) -> dict[str, str]:
    return {"N": str(value)}


async def ids(setting: Mapping[str, Any], *items: dict[str, Any], damaged: dict[str, int] | None = None) -> list[str]:
    table, _ = members(setting, {"Items": list(items)}, damaged=damaged)
    return [member.connection_id for member in (await table.begin_page("lobby", 0)).members]


def read_of(request: dict[str, Any]) -> dict[str, Any]:
    """The request with names of attributes instead of placeholders."""
    names = request.pop("ExpressionAttributeNames")
    text = json.dumps(request)
    for placeholder in sorted(names, key=len, reverse=True):
        assert placeholder in text, "DynamoDB rejects a placeholder that is not used"
        text = text.replace(placeholder, names[placeholder])
    found: dict[str, Any] = json.loads(text)
    return found


async def test_a_table_is_queried_consistently_by_its_own_names() -> None:
    table, service = members(SETTING, {"Items": []})
    assert await table.begin_page("lobby", 0) == ([], None, ())
    [(operation, request)] = service.calls
    assert operation == "Query"
    assert read_of(request) == {
        "TableName": "connections",
        "KeyConditionExpression": "room = :pk",
        "ExpressionAttributeValues": {":pk": {"S": "room#lobby"}},
        "ProjectionExpression": "id, ttl, joined",
        "ConsistentRead": True,
        "Limit": 1_000,
    }


async def test_a_global_index_is_not_and_what_is_behind_a_prefix_is_left_out() -> None:
    table, service = members({**INDEX, "user": "user"}, {"Items": []})
    await table.begin_page("lobby", 0)
    request = read_of(service.calls[0][1])
    assert (request["IndexName"], request["ConsistentRead"]) == ("byRoom", False)
    assert request["ProjectionExpression"] == "id, joined, ttl"  # the user only for a queue
    table, service = members({**SINGLE_TABLE, "user": "user", "on_gone": QUEUE_URL}, {"Items": []})
    await table.begin_page("lobby", 0)
    request = read_of(service.calls[0][1])
    assert request["KeyConditionExpression"] == "PK = :pk AND begins_with(SK, :prefix)"
    assert request["ExpressionAttributeValues"] == {":pk": {"S": "CHANNEL#lobby"}, ":prefix": {"S": "C#"}}
    assert request["ProjectionExpression"] == "SK, ttl, joined, user"


async def test_a_page_is_continued_at_a_member_or_where_it_ended() -> None:
    last_key = {"room": {"S": "room#lobby"}, "joined": number(7), "id": {"S": "b="}}
    page = {"Items": [item("a=", joined=number(5)), item("b=", joined=number(7))], "LastEvaluatedKey": last_key}
    table, service = members(INDEX, page, page, page)
    first = await table.begin_page("lobby", 0)
    assert [member.frames for member in first.members] == [1, 1]
    assert first.after == first.members[-1].locator
    for after in (first.members[0].locator, first.after):
        await table.begin_page("lobby", 0, after)
    starts = [request["ExclusiveStartKey"] for _, request in service.calls[1:]]
    assert starts == [{**last_key, "joined": number(5), "id": {"S": "a="}}, last_key]
    assert all(each.startswith(table.prefix) for each in (first.after, first.members[0].locator))


async def test_a_page_ends_where_dynamodb_says_and_not_at_the_last_member() -> None:
    """The last items may have expired, and all keys of an index that could not be described are in the response."""
    last_key = {"room": {"S": "room#lobby"}, "joined": number(7), "id": {"S": "b="}, "tenant": {"S": "t"}}
    page = {"Items": [item("b=", ttl=number(NOW - 1), joined=number(7))], "LastEvaluatedKey": last_key}
    table, _ = members(INDEX, page)
    read = await table.begin_page("lobby", 0)
    assert not read.members
    assert read.after is not None
    assert Locator.decode(read.after).attributes == {k: v for k, v in last_key.items() if k != "room"}


@pytest.mark.parametrize(
    ("setting", "other", "same"),
    [
        (SETTING, {"table": "others"}, False),
        (SETTING, {"pk_value": "r#{room}"}, False),
        (SETTING, {"pk_value": "room#{room}#{shard}"}, False),
        (SETTING, {"pk": "channel"}, False),
        (SETTING, {"expires_at": "until", "on_gone": QUEUE_URL}, True),
        (INDEX, {"index": "byTime"}, False),
        (INDEX, {"table_key": ["id", "tenant"]}, False),
        (INDEX, {"table_key": ["id", "room"]}, True),
    ],
)
def test_locators_belong_to_one_source(setting: Mapping[str, Any], other: Mapping[str, Any], *, same: bool) -> None:
    one, another = members(setting)[0].prefix, members({**setting, **other})[0].prefix
    assert (one == another) is same


async def test_without_shards_in_the_pattern_all_members_are_in_shard_0() -> None:
    table, service = members(SETTING, {"Items": [item("a=")]})
    assert (await table.begin_page("lobby", 3)) == ([], None, ())
    assert not service.calls
    assert len((await table.begin_page("lobby", 0)).members) == 1
    sharded, service = members({**SETTING, "pk_value": "{room}.{shard}"}, {"Items": []})
    await sharded.begin_page("lobby", 3)
    assert service.calls[0][1]["ExpressionAttributeValues"] == {":pk": {"S": "lobby.3"}}


@pytest.mark.parametrize(
    ("attributes", "joined_at_ms"),
    [
        ({"joined": number(NOW_MS - 5_000)}, NOW_MS - 5_000),
        ({"joined": number(NOW - 5)}, NOW_MS - 5_000),
        ({"joined": {"S": str(NOW_MS)}}, NOW_MS),
        ({"joined": number(NOW + 0.25)}, NOW_MS + 250),
        ({"joined": number(0)}, 0),
        ({"joined": {"N": "1E125"}}, 0),
        ({}, 0),
    ],
)
async def test_times_are_in_milliseconds_or_in_seconds(attributes: dict[str, Any], joined_at_ms: int) -> None:
    damaged: dict[str, int] = {}
    table, _ = members(SETTING, {"Items": [item("a=", **attributes)]}, damaged=damaged)
    [member] = (await table.begin_page("lobby", 0)).members
    assert member == Member("a=", joined_at_ms, locator=member.locator)
    assert not damaged


async def test_members_whose_item_has_expired_are_left_out_and_not_passed_on() -> None:
    found = [
        item("past=", ttl=number(NOW)),
        item("past-ms=", ttl=number(NOW_MS - 1)),
        item("text=", ttl={"S": str(NOW - 1)}),
        item("future=", ttl=number(NOW + 1)),
        item("future-ms=", ttl=number(NOW_MS + 1)),
        item("never="),
    ]
    table, _ = members(SETTING, {"Items": found})
    page = await table.begin_page("lobby", 0)
    assert [member.connection_id for member in page.members] == ["future=", "future-ms=", "never="]
    assert page.expired == (), "what expiry means in this table is not known: nobody is disconnected"


@pytest.mark.parametrize(
    ("odd", "is_member"),
    [
        (item("odd=", ttl={"S": "soon"}), True),
        (item("odd=", joined={"S": "2026-11-01T10:00:00Z"}), True),
        (item("odd=", joined={"L": []}, ttl={"NULL": True}), True),
        ({"id": {"B": "eA=="}}, False),
        ({"id": {"S": ""}}, False),
        ({"other": {"S": "odd="}}, False),
        ({}, False),
    ],
)
async def test_a_damaged_item_costs_no_other_member_its_message(odd: dict[str, Any], *, is_member: bool) -> None:
    damaged: dict[str, int] = {}
    with capture_logs() as logged:
        found = await ids(SETTING, item("a="), odd, item("b="), damaged=damaged)
    assert found == ["a=", *(["odd="] if is_member else []), "b="]
    assert damaged["membership"] >= 1
    assert [(each["event"], each["pk"]) for each in logged] == [("item.damaged", "room#lobby")]


async def test_an_attribute_that_the_setting_takes_for_a_key_is_missed() -> None:
    damaged: dict[str, int] = {}
    with capture_logs() as logged:
        assert await ids({**INDEX, "sk": "since"}, item("a="), damaged=damaged) == ["a="]
    assert damaged == {"membership": 1}
    assert "since: no such attribute" in logged[0]["reason"]


async def test_a_connection_with_several_items_is_one_member() -> None:
    setting = {**INDEX, "table_key": ["subscription"]}
    found = [item(each, joined=number(5), subscription={"S": str(n)}) for n, each in enumerate(["a=", "b=", "a="])]
    assert await ids(setting, *found) == ["a=", "b="]


async def test_the_connection_id_may_be_behind_a_prefix() -> None:
    assert await ids(SINGLE_TABLE, {"SK": {"S": "C#a="}}, {"SK": {"S": "C#C#b="}}) == ["a=", "C#b="]
    assert await ids(SINGLE_TABLE, {"SK": {"S": "C#"}}, damaged={}) == []


async def test_the_user_is_in_the_locator_if_it_is_needed_for_a_queue() -> None:
    setting = {**SETTING, "user": "user-id", "on_gone": QUEUE_URL}
    users = [{"S": "ann"}, {"S": "x" * 257}, {"N": "7"}]
    table, _ = members(setting, {"Items": [item(f"{n}=", **{"user-id": user}) for n, user in enumerate(users)]})
    page = await table.begin_page("lobby", 0)
    assert [Locator.decode(member.locator).user for member in page.members] == ["ann", "", ""]


@pytest.mark.parametrize("response", [[], {}, {"Items": None}, {"Items": [7]}, {"Items": [], "LastEvaluatedKey": 7}])
async def test_a_malformed_page_is_a_dependency_error(response: Any) -> None:
    table, _ = members(SETTING, response)
    with pytest.raises(DependencyError):
        await table.begin_page("lobby", 0)


# Deletion


@pytest.mark.parametrize(
    ("setting", "found_in", "locator", "key"),
    [
        (SETTING, ("lobby", 0), None, {"room": {"S": "room#lobby"}, "id": {"S": "a="}}),
        (SINGLE_TABLE, ("lobby", 0), None, {"PK": {"S": "CHANNEL#lobby"}, "SK": {"S": "C#a="}}),
        (SETTING, None, None, None),
        (INDEX, None, None, {"id": {"S": "a="}}),
        ({**INDEX, "table_key": ["id", "room"]}, ("lobby", 0), None, {"id": {"S": "a="}, "room": {"S": "room#lobby"}}),
        ({**INDEX, "table_key": ["id", "joined"]}, ("lobby", 0), None, None),
        (
            {**INDEX, "table_key": ["id", "joined"]},
            ("lobby", 0),
            {"id": {"S": "a="}, "joined": number(5)},
            {"id": {"S": "a="}, "joined": number(5)},
        ),
        (
            {**INDEX, "table_key": ["user"]},
            ("lobby", 0),
            {"user": {"S": "ann"}, "id": {"S": "a="}},
            {"user": {"S": "ann"}},
        ),
    ],
)
async def test_an_item_is_deleted_by_the_tables_key_if_it_names_the_connection(
    setting: Mapping[str, Any],
    found_in: tuple[str, int] | None,
    locator: dict[str, Any] | None,
    key: dict[str, Any] | None,
) -> None:
    table, service = members(setting, {})
    text = Locator(locator).encode(table.prefix) if locator is not None else ""
    assert await table.delete("a=", found_in, text) is (key is not None)
    if key is None:
        assert not service.calls
        return
    [(operation, request)] = service.calls
    assert operation == "DeleteItem"
    assert (request["TableName"], request["Key"], request["ConditionExpression"]) == ("connections", key, "#id = :id")
    prefix, name = ("C#", "SK") if setting is SINGLE_TABLE else ("", "id")
    assert request["ExpressionAttributeNames"] == {"#id": name}
    assert request["ExpressionAttributeValues"] == {":id": {"S": f"{prefix}a="}}


class Failing(Service):
    def __init__(self, code: str) -> None:
        super().__init__()
        self.code = code

    async def call(self, operation: str, body: bytes) -> bytes:
        assert operation
        assert body
        raise ServiceError(self.code)


async def test_an_item_that_is_gone_or_names_another_connection_needs_no_deletion() -> None:
    source = MembersSource.parse(json.dumps(SETTING))
    for code, succeeds in (("ConditionalCheckFailedException", True), ("ThrottlingException", False)):
        service = cast("JsonService", Failing(code))
        table = ForeignTable(service, Table(service, "gatecast"), source, assumed_keys(source))
        if succeeds:
            assert await table.delete("a=", ("lobby", 0), "")
        else:
            with pytest.raises(DependencyError):
                await table.delete("a=", ("lobby", 0), "")


# Settings, connections and the start


async def test_settings_that_cannot_be_followed_are_reported_and_count_as_not_set() -> None:
    attributes = {"shards": number(4), "join_shards": number(4), "history_seconds": number(60), "presence": number(9)}
    found = [{"pk": {"S": "settings#big"}, **attributes}, {"pk": {"S": "settings#*"}, "shards": number(1)}]
    response = {
        "Responses": {"gatecast": found},
        "UnprocessedKeys": {"gatecast": {"Keys": [{"pk": {"S": "settings#x"}}]}},
    }
    damaged: dict[str, int] = {}
    table, _ = members(SETTING, response, response, damaged=damaged)
    with capture_logs() as logged:
        for _ in range(2):
            big, every, unread = await table.settings(["big", "*", "x"])
    assert big == SettingsItem(history_seconds=60)
    assert every == SettingsItem(shards=1)
    assert isinstance(unread, DependencyError)
    assert damaged == {"settings": 2}
    [line] = logged
    assert line["reason"].startswith("shards and join_shards and presence: not with GATECAST_MEMBERS")
    sharded, _ = members({**SETTING, "pk_value": "{room}#{shard}"}, response)
    assert (await sharded.settings(["big"])) == [SettingsItem(4, 4, 60)]


async def test_nothing_is_known_of_connections_and_nothing_is_read() -> None:
    table, service = members(SETTING)
    assert await table.connections(["a=", "b="]) == {}
    assert not service.calls


async def test_the_tables_description_decides_about_its_keys() -> None:
    key = [{"AttributeName": name, "KeyType": kind} for name, kind in (("room", "HASH"), ("id", "RANGE"))]
    definitions = [{"AttributeName": name, "AttributeType": "S"} for name in ("room", "id")]
    service = Service({"Table": {"KeySchema": key, "AttributeDefinitions": definitions}}, {"Table": {}}, {})
    source = MembersSource.parse(json.dumps(SETTING))
    assert await find_keys(cast("JsonService", service), source) == assumed_keys(source)
    assert service.calls == [("DescribeTable", {"TableName": "connections"})]
    for _ in range(2):
        with pytest.raises(DependencyError):
            await find_keys(cast("JsonService", service), source)


async def test_a_table_that_may_not_be_described_is_taken_to_be_as_the_setting_says() -> None:
    source = MembersSource.parse(json.dumps(INDEX))
    with capture_logs() as logged:
        keys = await find_keys(cast("JsonService", Failing("AccessDeniedException")), source)
    assert keys == assumed_keys(source)
    assert [(each["event"], each["assumed_key"]) for each in logged] == [("members.unchecked", ["id"])]


async def test_a_table_that_does_not_exist_is_a_wrong_setting_and_any_other_failure_is_retried() -> None:
    source = MembersSource.parse(json.dumps(SETTING))
    with pytest.raises(InvalidMembers, match=r"^table is 'connections': expected a table that exists"):
        await find_keys(cast("JsonService", Failing("ResourceNotFoundException")), source)
    with pytest.raises(DependencyError):
        await find_keys(cast("JsonService", Failing("ThrottlingException")), source)
