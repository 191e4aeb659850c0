"""How the presence adapter pages, and what it makes of malformed responses. A scripted service responds."""

import json
from typing import Any, cast

import pytest

from worker.aws.json_service import JsonService
from worker.aws.presence import PresenceTable
from worker.ports import Count, DependencyError

NOW = 1_800_000_000.0


class Service:
    """Returns the scripted responses in turn."""

    def __init__(self, *responses: Any) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self._responses = list(responses)

    async def call(self, operation: str, body: bytes) -> bytes:
        self.calls.append((operation, json.loads(body)))
        return json.dumps(self._responses.pop(0)).encode()


def presence_table(*responses: Any) -> tuple[PresenceTable, Service]:
    service = Service(*responses)
    return PresenceTable(cast("JsonService", service), "t", wall_clock=lambda: NOW), service


def item(connection_id: str, expires_in: int) -> dict[str, Any]:
    return {"sk": {"S": f"ann {connection_id}"}, "expires_at": {"N": str(int(NOW) + expires_in)}}


async def test_all_pages_are_read_until_an_item_has_not_expired() -> None:
    last_key = {"pk": {"S": "presence#lobby"}, "sk": {"S": "ann a="}}
    store, service = presence_table(
        {"Items": [item("a=", -5)], "LastEvaluatedKey": last_key},
        {"Items": [], "LastEvaluatedKey": last_key},
        {"Items": [item("b=", 5)], "LastEvaluatedKey": last_key},
    )
    assert await store.is_present("lobby", "ann")
    assert [operation for operation, _ in service.calls] == ["Query"] * 3
    assert [query.get("ExclusiveStartKey") for _, query in service.calls] == [None, last_key, last_key]
    assert all(query["ConsistentRead"] for _, query in service.calls)


async def test_a_user_without_an_item_is_absent() -> None:
    store, _ = presence_table({"Items": []})
    assert not await store.is_present("lobby", "ann")


@pytest.mark.parametrize("response", [[], {}, {"Items": None}, {"Items": [7]}])
async def test_a_malformed_response_is_a_dependency_error(response: Any) -> None:
    store, _ = presence_table(response)
    with pytest.raises(DependencyError):
        await store.is_present("lobby", "ann")


async def test_counts_are_one_call_whose_response_does_not_matter() -> None:
    store, service = presence_table({"UnprocessedItems": {"t": []}})
    await store.write_counts([Count("lobby", 0, 5, 1_800_000_000_000), Count("hall", 3, 0, 1_800_000_000_000)])
    [(operation, request)] = service.calls
    assert operation == "BatchWriteItem"
    assert [each["PutRequest"]["Item"]["pk"]["S"] for each in request["RequestItems"]["t"]] == [
        "count#lobby",
        "count#hall",
    ]
