"""How the table adapter reads damaged items and malformed responses. A scripted service responds."""

import asyncio
import json
import math
from collections.abc import Iterable
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from gatecast.frames import V1, V2
from gatecast.room_settings import SettingsItem
from worker.aws.json_service import JsonService
from worker.aws.table import Table
from worker.observe.damaged_items import DamagedItems
from worker.ports import Connection, DependencyError, JoinedRoom, Member

NOW = 1_800_000_000.0
INTACT = {"sk": {"S": "intact="}, "joined_at_ms": {"N": "7"}, "expires_at": {"N": "1800003600"}}


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


def table(*responses: Any, damaged: dict[str, int] | None = None) -> tuple[Table, Service]:
    service = Service(*responses)
    items = DamagedItems({} if damaged is None else damaged)
    return Table(cast("JsonService", service), "t", wall_clock=lambda: NOW, damaged=items), service


def item(**attributes: Any) -> dict[str, Any]:
    return {"sk": {"S": "odd="}, **attributes}


@pytest.mark.parametrize(
    ("odd", "read"),
    [
        (item(expires_at={"S": "soon"}, joined_at_ms={"N": "5"}), Member("odd=", 5)),
        (item(expires_at={"NULL": True}, joined_at_ms={"N": "5"}), Member("odd=", 5)),
        (item(expires_at={"N": "x"}, joined_at_ms={"N": "5"}), Member("odd=", 5)),
        (item(expires_at={}, joined_at_ms={"N": "5"}), Member("odd=", 5)),
        (item(expires_at={"S": "1800003600"}, joined_at_ms={"N": "5"}), Member("odd=", 5)),
        (item(expires_at={"S": "1799999999"}, joined_at_ms={"N": "5"}), None),
        (item(joined_at_ms={"S": "yesterday"}), Member("odd=", 0)),
        (item(joined_at_ms={"L": []}, expires_at={"N": "1800003600"}), Member("odd=", 0)),
        (item(joined_at_ms={"L": []}, expires_at={"N": "1799999999"}), None),
        (item(frames={"S": "2"}), Member("odd=", 0, V2)),
        (item(frames={"N": "x"}, joined_at_ms={"N": "5"}), Member("odd=", 5, V1)),
        (item(frames={"BOOL": True}), Member("odd=", 0, V1)),
        ({"sk": {"B": "eA=="}}, None),
        ({}, None),
    ],
)
async def test_a_damaged_membership_costs_no_other_member_its_message(odd: Any, read: Member | None) -> None:
    damaged: dict[str, int] = {}
    members, _ = table({"Items": [INTACT, odd, INTACT], "LastEvaluatedKey": {"sk": {"S": "intact="}}}, damaged=damaged)
    with capture_logs() as logged:
        page = await members.begin_page("lobby", 3)
    assert page.members == [each for each in (Member("intact=", 7), read, Member("intact=", 7)) if each]
    assert page.after == "intact="
    assert damaged == {"membership": 1}
    assert [(each["event"], each["pk"]) for each in logged] == [("item.damaged", "room#lobby#3")]


async def test_dialects_are_read_and_those_of_later_versions_count_as_the_first() -> None:
    numbers = ["1", "2", "2.0", "3", "-2", "1E125"]
    damaged: dict[str, int] = {}
    members, _ = table({"Items": [item(frames={"N": number}) for number in numbers]}, damaged=damaged)
    page = await members.begin_page("lobby", 0)
    assert [member.frames for member in page.members] == [V1, V2, V2, V1, V1, V1]
    assert not damaged


@pytest.mark.parametrize("damage", [{}, {"joined_at_ms": {"S": "yesterday"}}])
async def test_expired_memberships_are_given_apart_on_intact_and_on_damaged_pages(damage: dict[str, Any]) -> None:
    expired = {"sk": {"S": "expired="}, "joined_at_ms": {"N": "7"}, "expires_at": {"N": "1800000000"}}
    unreadable = {"sk": {"S": "unreadable="}, "expires_at": {"S": "soon"}}
    items = [INTACT, {**expired, "frames": {"N": "2"}, **damage}, *([unreadable] if damage else [])]
    members, _ = table({"Items": items})
    page = await members.begin_page("lobby", 0)
    assert [member.connection_id for member in page.members] == ["intact=", *(["unreadable="] if damage else [])]
    assert page.expired == [Member("expired=", 0 if damage else 7, V2)]


async def test_pages_of_members_and_connections_are_read_consistently() -> None:
    """A client whose join has been confirmed receives what is published after that; a new connection has an item."""
    members, service = table({"Items": []}, {"Items": []}, {"Responses": {}})
    await members.begin_page("lobby", 0)
    await members.begin_page("lobby", 0, after="a=")
    await members.connections(["a="])
    first, next_, connections = (request for _, request in service.calls)
    assert first["ConsistentRead"] is next_["ConsistentRead"] is True
    assert connections["RequestItems"]["t"]["ConsistentRead"] is True


async def test_numbers_of_any_size_are_read() -> None:
    odd = [item(joined_at_ms={"N": number}) for number in ("1E125", "-1E125", "9007199254740992")]
    members, _ = table({"Items": odd})
    assert (await members.begin_page("lobby", 0)).members == [Member("odd=", 0)] * 3


@pytest.mark.parametrize("response", [[], {}, {"Items": None}, {"Items": [7]}, {"Items": [], "LastEvaluatedKey": {}}])
async def test_a_malformed_page_is_a_dependency_error(response: Any) -> None:
    members, _ = table(response)
    with pytest.raises(DependencyError):
        await members.begin_page("lobby", 0)


async def test_one_damaged_settings_item_fails_no_other_room() -> None:
    values: dict[str, Any] = {"a": {"N": "1000000000"}, "b": {"S": "x"}, "c": {"N": "4"}, "d": {"N": "2.5"}}
    found = [{"pk": {"S": f"settings#{room}"}, "shards": value} for room, value in values.items()]
    response = {"Responses": {"t": found}, "UnprocessedKeys": {"t": {"Keys": [{"pk": {"S": "settings#e"}}]}}}
    damaged: dict[str, int] = {}
    members, service = table(response, response, damaged=damaged)
    with capture_logs() as logged:
        for _ in range(2):
            *settings, unread = await members.settings(["a", "b", "c", "d", "none", "e"])
    assert settings == [SettingsItem(1_000), SettingsItem(1), SettingsItem(4), SettingsItem(2), SettingsItem()]
    assert isinstance(unread, DependencyError)
    assert damaged == {"settings": 6}
    assert [each["pk"] for each in logged] == ["settings#a", "settings#b", "settings#d"], "once each"
    assert all(request["RequestItems"]["t"]["ConsistentRead"] for _, request in service.calls)


def test_logged_items_are_remembered_within_bounds() -> None:
    counts: dict[str, int] = {}
    items = DamagedItems(counts)
    with capture_logs() as logged:
        for number in range(3_000):
            items.report("settings", f"settings#{number}", "odd")
            items.report("settings", "settings#0", "odd")
    assert counts == {"settings": 6_000}
    assert len(logged) == 3_000
    assert len(items._logged) <= 1_000


async def test_a_connection_without_a_timestamp_counts_as_old() -> None:
    times: Iterable[tuple[str, Any]] = [("a", {"N": "12.5"}), ("b", {"S": "x"}), ("c", {"N": "1E125"}), ("d", None)]
    found = [{"pk": {"S": f"connection#{each}"}, **({"connected_at_ms": time} if time else {})} for each, time in times]
    damaged: dict[str, int] = {}
    members, service = table({"Responses": {"t": found}}, damaged=damaged)
    connections = await members.connections(["a", "b", "c", "d", "e", "a"])
    assert {each: found.connected_at_ms for each, found in connections.items()} == {"a": 12, "b": 0, "c": 0, "d": 0}
    assert {(found.frames, found.expires_at) for found in connections.values()} == {(V1, math.inf)}
    assert damaged == {"connection": 1}
    assert len(service.calls[0][1]["RequestItems"]["t"]["Keys"]) == 5, "a duplicate key fails the whole call"


async def test_damaged_connections_have_the_least_harmful_values() -> None:
    damage = {"frames": {"L": []}, "expires_at": {"S": "x"}, "connected_at_ms": {"N": "5"}}
    found = [{"pk": {"S": "connection#a"}, **damage}, {"pk": {"S": "connection#b"}, "frames": {"N": "2"}}]
    damaged: dict[str, int] = {}
    members, _ = table({"Responses": {"t": found}}, damaged=damaged)
    assert await members.connections(["a", "b"]) == {"a": Connection(5, V1), "b": Connection(0, V2)}
    assert damaged == {"connection": 1}


async def test_unprocessed_connection_keys_are_a_dependency_error() -> None:
    unprocessed = {"t": {"Keys": [{"pk": {"S": "connection#a"}}]}}
    members, _ = table({"Responses": {}, "UnprocessedKeys": unprocessed})
    with pytest.raises(DependencyError, match="UnprocessedKeys"):
        await members.connections(["a"])


async def test_joined_rooms_are_read_to_the_last_page_even_with_damaged_shards() -> None:
    first = [{"sk": {"S": "room#a"}, "shard": {"N": "3"}}, {"sk": {"S": "room#b#1"}, "shard": {"S": "x"}}]
    last = [{"sk": {"S": "room#c"}}, {"sk": {"S": "room#d"}, "shard": {"N": "1.5"}}]
    damaged: dict[str, int] = {}
    members, service = table(
        {"Items": first, "LastEvaluatedKey": {"pk": {"S": "connection#x"}, "sk": {"S": "room#b#1"}}},
        {"Items": last},
        damaged=damaged,
    )
    rooms = await members.joined_rooms("x")
    assert rooms == [JoinedRoom("a", 3), JoinedRoom("b#1", None), JoinedRoom("c", None), JoinedRoom("d", None)]
    assert damaged == {"joined_room": 3}
    assert [request.get("ExclusiveStartKey", {}).get("sk") for _, request in service.calls] == [None, {"S": "room#b#1"}]
    assert all(request["ConsistentRead"] for _, request in service.calls)


async def test_removal_returns_what_was_not_processed() -> None:
    unprocessed = {"DeleteRequest": {"Key": {"pk": {"S": "connection#b="}, "sk": {"S": "connection"}}}}
    members, service = table({"UnprocessedItems": {"t": [unprocessed]}}, {"UnprocessedItems": {}}, {})
    assert await members.remove_connections(["a=", "b="]) == ["b="]
    assert await members.remove_connections(["b="]) == []
    assert await members.delete_batch([{"pk": {"S": "p"}, "sk": {"S": "s"}}]) == []
    assert [operation for operation, _ in service.calls] == ["BatchWriteItem"] * 3
    assert service.calls[2][1] == {
        "RequestItems": {"t": [{"DeleteRequest": {"Key": {"pk": {"S": "p"}, "sk": {"S": "s"}}}}]}
    }
