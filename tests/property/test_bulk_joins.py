"""A join of several rooms, whatever the connection has joined before and others do in between.

The table is one in memory, whose transactions are all or nothing and name each failed condition, as DynamoDB's do.
"""

from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import assume, given
from hypothesis import strategies as st

from gatecast.rooms.backoff import Backoff
from gatecast.rooms.memberships import Memberships
from routes.requests import Caller
from routes.responses import Code, RequestRejected
from tests.routes_events import CONNECTION_ID, EXPIRES_AT, event

CALLER = Caller.from_event(event())
FAILED = "ConditionalCheckFailed"
ROOMS = [f"r{number}" for number in range(12)]


class Table:
    """One connection's items. `draws` decides what happens before each transaction."""

    def __init__(self, joined: set[str], draws: list[tuple[str, str]]) -> None:
        self.memberships = set(joined)
        self.joined_rooms = set(joined)
        self.counted = len(joined)
        self.connected = True
        self.transactions = 0
        self._draws = draws

    def batch_get_item(self, **_: Any) -> Any:
        return {}

    def get_item(self, **_: Any) -> Any:
        item = {"rooms": {"N": str(self.counted)}, "expires_at": {"N": str(EXPIRES_AT)}}
        return {"Item": item} if self.connected else {}

    def transact_write_items(self, **arguments: Any) -> None:
        self.transactions += 1
        codes = self._interfere(len(arguments["TransactItems"]))
        first, *puts = arguments["TransactItems"]
        values = first["Update"]["ExpressionAttributeValues"]
        joining, most = int(values[":joined"]["N"]), int(values[":most"]["N"])
        may_be_first = "attribute_not_exists(rooms)" in first["Update"]["ConditionExpression"]
        fits = self.counted <= most or (not self.counted and may_be_first)
        if not (self.connected and fits):
            codes[0] = FAILED
        items = [put["Put"]["Item"] for put in puts]
        for index, item in enumerate(items, start=1):
            if item["pk"]["S"].startswith("connection#") and item["sk"]["S"].removeprefix("room#") in self.joined_rooms:
                codes[index] = FAILED
        if set(codes) != {"None"}:
            reasons = {"CancellationReasons": [{"Code": code} for code in codes], "Error": {"Code": "x"}}
            raise ClientError(reasons, "TransactWriteItems")
        self.counted += joining
        for item in items:
            if item["pk"]["S"].startswith("connection#"):
                self.joined_rooms.add(item["sk"]["S"].removeprefix("room#"))
            else:
                self.memberships.add(item["pk"]["S"].split("#")[1])

    def _interfere(self, actions: int) -> list[str]:
        kind, room = self._draws.pop() if self._draws else ("nothing", "")
        codes = ["None"] * actions
        if kind == "conflict":
            codes[len(room) % actions] = "TransactionConflict"
        elif kind == "leave" and room in self.joined_rooms:
            self.joined_rooms.remove(room)
            self.memberships.remove(room)
            self.counted -= 1
        elif kind == "disconnect":
            self.connected, self.counted = False, 0
            self.memberships.clear()
            self.joined_rooms.clear()
        return codes


rooms = st.lists(st.sampled_from(ROOMS), unique=True, max_size=len(ROOMS))
interference = st.tuples(st.sampled_from(["nothing", "conflict", "leave"]), st.sampled_from(ROOMS))


@given(before=rooms, wanted=rooms, limit=st.integers(1, 12), draws=st.lists(interference, max_size=4))
def test_each_room_is_joined_or_exceeds_the_limit(
    before: list[str], wanted: list[str], limit: int, draws: list[tuple[str, str]]
) -> None:
    limit = max(limit, len(before))
    table = Table(set(before), list(draws))
    free_before = limit - len(before)
    rejected = join(table, wanted, limit)
    assert table.memberships == table.joined_rooms
    assert table.counted == len(table.joined_rooms) <= limit
    assert {each.code for each in rejected.values()} <= {Code.TOO_MANY_ROOMS}
    if not any(kind == "leave" for kind, _ in draws):
        new = [room for room in wanted if room not in before]
        assert list(rejected) == new[free_before:], "in the order of the request, as many as fit"
        assert set(wanted) - set(rejected) <= table.joined_rooms
        assert table.transactions <= 4 + 3 * len(wanted)


@given(before=rooms, wanted=rooms, when=st.integers(0, 3))
def test_a_connection_that_is_gone_joins_nothing(before: list[str], wanted: list[str], when: int) -> None:
    assume(set(wanted) - set(before))
    draws = [("disconnect", ""), *[("conflict", "")] * when]
    table = Table(set(before), draws)
    with pytest.raises(RequestRejected) as rejection:
        join(table, wanted, 12)
    assert rejection.value.code is Code.NOT_CONNECTED
    assert table.memberships == table.joined_rooms == set()


def join(table: Table, wanted: list[str], limit: int) -> dict[str, RequestRejected]:
    backoff = Backoff(max_attempts=30, clock=lambda: 0.0, sleep=lambda _: None)
    return Memberships(table, "gatecast", max_rooms=limit, backoff=backoff).join(CALLER, wanted)  # type: ignore[arg-type]


def test_the_table_is_that_of_one_connection() -> None:
    table = Table(set(), [])
    assert join(table, ["a", "b"], 5) == {}
    assert table.joined_rooms == {"a", "b"}
    assert CALLER.connection_id == CONNECTION_ID
