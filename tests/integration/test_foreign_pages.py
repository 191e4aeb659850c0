"""Pages of members from tables of the operator's own, of every shape, on ministack: reading, resuming, deleting."""

import json
from typing import Any

import pytest

from tests.foreign_tables import (
    BY_CONNECTION,
    BY_ROOM,
    BY_TIME,
    LOCAL_INDEX,
    SINGLE_TABLE,
    ForeignSchema,
)
from tests.members import connection_ids
from worker.aws.foreign_members import ForeignTable, find_keys
from worker.aws.json_service import JsonService
from worker.aws.table import Table
from worker.members_check import assumed_keys
from worker.members_setting import InvalidMembers, MembersSource
from worker.ports import Member

SCHEMAS = {
    "table": BY_ROOM,
    "index": BY_CONNECTION,
    "index by time": BY_TIME,
    "single table": SINGLE_TABLE,
    "local index": LOCAL_INDEX,
}
ROOM = "lobby"


@pytest.fixture(params=SCHEMAS)
def schema(request: pytest.FixtureRequest, dynamodb: Any, unique_name: str) -> ForeignSchema:
    """A schema whose table exists under the test's unique name."""
    found = SCHEMAS[request.param]
    found.create(dynamodb, unique_name)
    return found


async def open_table(service: JsonService, schema: ForeignSchema, name: str, **others: Any) -> ForeignTable:
    source = MembersSource.parse(schema.members(name, **others))
    return ForeignTable(service, Table(service, "unused"), source, await find_keys(service, source))


async def read_from(table: ForeignTable, after: str = "", *, room: str = ROOM) -> list[list[Member]]:
    """The members of each page, from this locator on."""
    pages: list[list[Member]] = []
    while True:
        page = await table.begin_page(room, 0, after)
        pages.append(list(page.members))
        if page.after is None:
            return pages
        after = page.after


async def test_every_member_of_a_room_is_read_once_and_reading_resumes_after_any_of_them(
    dynamodb_service: JsonService,
    dynamodb: Any,
    schema: ForeignSchema,
    unique_name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.aws.foreign_members._PAGE_MEMBERS", 4)
    ids = connection_ids(18)
    schema.fill(dynamodb, unique_name, ROOM, ids)
    schema.fill(dynamodb, unique_name, "other", connection_ids(3, "o"))
    table = await open_table(dynamodb_service, schema, unique_name)

    pages = await read_from(table)

    members = [member for page in pages for member in page]
    assert [len(page) for page in pages] == [4, 4, 4, 4, 2]
    assert sorted(member.connection_id for member in members) == ids
    assert all(member.joined_at_ms for member in members)
    for number, member in enumerate(members):
        rest = [each for page in await read_from(table, member.locator) for each in page]
        assert rest == members[number + 1 :]
    assert await read_from(table, room="nobody") == [[]]


async def test_pages_end_at_a_megabyte(
    dynamodb_service: JsonService, dynamodb: Any, schema: ForeignSchema, unique_name: str
) -> None:
    ids = connection_ids(400)
    schema.fill(dynamodb, unique_name, ROOM, ids, profile={"S": "x" * 6_000})
    table = await open_table(dynamodb_service, schema, unique_name)
    pages = await read_from(table)
    assert sorted(member.connection_id for page in pages for member in page) == ids
    assert len(pages) > 2 or schema.projection["ProjectionType"] == "KEYS_ONLY"


async def test_the_item_of_a_member_is_deleted_and_no_other(
    dynamodb_service: JsonService, dynamodb: Any, schema: ForeignSchema, unique_name: str
) -> None:
    ids = connection_ids(6)
    schema.fill(dynamodb, unique_name, ROOM, ids)
    table = await open_table(dynamodb_service, schema, unique_name)
    [members] = await read_from(table)
    doomed = members[2]

    for _ in range(2):  # the second time there is nothing to delete
        assert await table.delete(doomed.connection_id, (ROOM, 0), doomed.locator)
    assert await table.delete("another=", (ROOM, 0), members[4].locator)

    assert schema.ids(dynamodb, unique_name) == set(ids) - {doomed.connection_id}
    [rest] = await read_from(table, members[1].locator)
    assert rest == members[3:], "reading continues after a member that has been deleted"


async def test_a_locator_is_needed_only_where_the_key_has_more_than_the_room_and_the_connection(
    dynamodb_service: JsonService, dynamodb: Any, schema: ForeignSchema, unique_name: str
) -> None:
    schema.fill(dynamodb, unique_name, ROOM, ids := connection_ids(3))
    table = await open_table(dynamodb_service, schema, unique_name)
    known = schema not in (BY_TIME, LOCAL_INDEX)
    assert await table.delete(ids[0], (ROOM, 0), "") is known
    assert len(schema.ids(dynamodb, unique_name)) == (2 if known else 3)


async def test_an_item_that_names_a_new_connection_stays(
    dynamodb_service: JsonService, dynamodb: Any, unique_name: str
) -> None:
    """A table by user: when a client reconnects, its item gets the new connection's id."""
    schema = ForeignSchema(
        keys={"user": "S"},
        index={"room": "S"},
        setting={"index": "byRoom", "pk": "room", "pk_value": "{room}", "connection_id": "connectionId"},
        item={"user": {"S": "user-{number}"}, "room": {"S": "{room}"}, "connectionId": {"S": "{id}"}},
    )
    schema.create(dynamodb, unique_name)
    schema.fill(dynamodb, unique_name, ROOM, ids := connection_ids(3))
    table = await open_table(dynamodb_service, schema, unique_name)
    [members] = await read_from(table)
    schema.fill(dynamodb, unique_name, ROOM, ["new="])  # the first user's

    for member in members:
        if member.connection_id != ids[2]:
            assert await table.delete(member.connection_id, (ROOM, 0), member.locator)

    assert schema.ids(dynamodb, unique_name) == {"new=", ids[2]}


async def test_items_of_other_kinds_in_the_same_partition_are_no_members(
    dynamodb_service: JsonService, dynamodb: Any, unique_name: str
) -> None:
    SINGLE_TABLE.create(dynamodb, unique_name)
    SINGLE_TABLE.fill(dynamodb, unique_name, ROOM, connection_ids(2))
    for sk in ("ABOUT", "CONNECTED", "USER#ann"):
        dynamodb.put_item(TableName=unique_name, Item={"PK": {"S": f"ROOM#{ROOM}"}, "SK": {"S": sk}})
    table = await open_table(dynamodb_service, SINGLE_TABLE, unique_name)
    [members] = await read_from(table)
    assert [member.connection_id for member in members] == connection_ids(2)


async def test_shards_of_a_table_of_ones_own(dynamodb_service: JsonService, dynamodb: Any, unique_name: str) -> None:
    BY_ROOM.create(dynamodb, unique_name)
    for shard in range(2):
        BY_ROOM.fill(dynamodb, unique_name, f"{ROOM}#{shard}", connection_ids(3, f"s{shard}"))
    table = await open_table(dynamodb_service, BY_ROOM, unique_name, pk_value="room#{room}#{shard}")
    for shard in range(2):
        page = await table.begin_page(ROOM, shard)
        assert [member.connection_id for member in page.members] == connection_ids(3, f"s{shard}")


# The start


async def test_the_setting_is_compared_with_the_table(
    dynamodb_service: JsonService, schema: ForeignSchema, unique_name: str
) -> None:
    source = MembersSource.parse(schema.members(unique_name))
    found = await find_keys(dynamodb_service, source)
    if schema in (BY_ROOM, SINGLE_TABLE, BY_CONNECTION):
        assert found == assumed_keys(source)
    for field, value in (("pk", "nowhere"), ("sk", "nowhere"), ("index", "nowhere"), ("table", f"{unique_name}-2")):
        fields = {**json.loads(schema.members(unique_name)), field: value}
        fields |= {"connection_id": "connectionId"} if field == "sk" else {}
        with pytest.raises(InvalidMembers, match=f"^{field} is '"):
            await find_keys(dynamodb_service, MembersSource.parse(json.dumps(fields)))
