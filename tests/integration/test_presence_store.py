"""Presence items and counts: the same tests on the in-memory stores and on `worker.aws` with ministack."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from gatecast import table as keys
from tests.memory_stores import MemoryPresence, MemoryTable, TableState
from worker.aws.presence import PresenceTable
from worker.aws.table import Table
from worker.ports import Count, JoinedRoom, MemberTable, PresenceStore

NOW = 1_800_000_000
JOINED_AT_MS = 1_799_999_000_000


class Stores(NamedTuple):
    presence: PresenceStore
    members: MemberTable
    put: Callable[[Any], object]
    get: Callable[[str, str], Any]


@pytest.fixture(params=["memory", "aws"])
def stores(request: pytest.FixtureRequest) -> Stores:
    if request.param == "memory":
        state = TableState()
        table = MemoryTable(state, wall_clock=lambda: NOW)
        return Stores(MemoryPresence(state, wall_clock=lambda: NOW), table, state.put, state.get)
    name, dynamodb = request.getfixturevalue("table"), request.getfixturevalue("dynamodb")
    service = request.getfixturevalue("dynamodb_service")
    return Stores(
        PresenceTable(service, name, wall_clock=lambda: NOW),
        Table(service, name),
        lambda item: dynamodb.put_item(TableName=name, Item=item),
        lambda pk, sk: dynamodb.get_item(TableName=name, Key=keys.key(pk, sk)).get("Item"),
    )


def presence(user: str, connection_id: str, *, room: str = "lobby", expires_at: int = NOW + 60) -> Any:
    return keys.presence_item(room, user, connection_id, joined_at_ms=JOINED_AT_MS, expires_at=expires_at)


async def test_a_user_is_present_with_any_item_that_has_not_expired(stores: Stores) -> None:
    stores.put(presence("ann", "a=", expires_at=NOW - 10))
    stores.put(presence("ann", "b="))
    stores.put(presence("bob", "c=", expires_at=NOW))
    stores.put({**keys.key(keys.presence_pk("lobby"), "cid d="), "expires_at": {"S": "soon"}})
    assert await stores.presence.is_present("lobby", "ann")
    assert not await stores.presence.is_present("lobby", "bob")
    assert await stores.presence.is_present("lobby", "cid"), "an unreadable time keeps its user present"


async def test_a_user_is_not_another_one_in_another_room_or_with_a_longer_name(stores: Stores) -> None:
    stores.put(presence("ann", "a=", room="hall"))
    stores.put(presence("anna", "b="))
    stores.put(presence("an", "c="))
    assert not await stores.presence.is_present("lobby", "ann")
    assert await stores.presence.is_present("lobby", "anna")


async def test_a_joined_room_leads_to_the_presence_item(stores: Stores) -> None:
    for room, user in (("hall", None), ("lobby", "ann")):
        stores.put(keys.joined_room_item("a=", room, 0, expires_at=NOW + 60, present_user=user))
    assert await stores.members.joined_rooms("a=") == [JoinedRoom("hall", 0), JoinedRoom("lobby", 0, "ann")]


async def test_counts_are_written_by_shard_and_replace_older_ones(stores: Stores) -> None:
    await stores.presence.write_counts([Count("lobby", 0, 5, JOINED_AT_MS), Count("lobby", 12, 7, JOINED_AT_MS)])
    await stores.presence.write_counts([Count("lobby", 0, 6, JOINED_AT_MS + 10_000)])
    assert stores.get(keys.count_pk("lobby"), "0") == {
        "pk": {"S": "count#lobby"},
        "sk": {"S": "0"},
        "members": {"N": "6"},
        "counted_at_ms": {"N": str(JOINED_AT_MS + 10_000)},
        "expires_at": {"N": str(JOINED_AT_MS // 1000 + 10 + 24 * 3600)},
    }
    assert stores.get(keys.count_pk("lobby"), "12")["members"] == {"N": "7"}
