"""The rules of presence, case by case. `test_presence_schedules.py` shows that they lose no event."""

import math
from typing import Any

import pytest

from gatecast import decode, queue_message
from gatecast.presence import (
    DEPARTURE_DELAY_SECONDS,
    EXPIRY_MARGIN_SECONDS,
    REPEAT_SECONDS,
    PresenceItem,
    announces_join,
    departed_broadcast,
    departed_users,
    is_announced,
    is_present,
    joined_broadcast,
    user_query,
)
from gatecast.table import presence_item

NOW = 1_800_000_000
LATER = NOW + 7_200


def item(connection_id: str, joined_at_ms: int, expires_at: int = LATER) -> PresenceItem:
    return PresenceItem("alice", connection_id, joined_at_ms, expires_at)


def test_an_item_is_read_as_it_was_written() -> None:
    written = presence_item("lobby", "alice", "c=", joined_at_ms=NOW * 1000, expires_at=LATER)
    assert PresenceItem.from_item(written) == ("alice", "c=", NOW * 1000, LATER)


@pytest.mark.parametrize("sk", [{"S": "alice"}, {"S": " c="}, {"S": "alice "}, {"N": "1"}, {}])
def test_an_item_with_another_key_is_none(sk: dict[str, str]) -> None:
    assert PresenceItem.from_item({"pk": {"S": "presence#lobby"}, "sk": sk}) is None


@pytest.mark.parametrize("damage", [{"S": "x"}, {"BOOL": True}, None])
def test_an_item_with_unreadable_times_is_present_and_keeps_no_join_from_being_announced(damage: Any) -> None:
    written: dict[str, Any] = presence_item("lobby", "alice", "a", joined_at_ms=NOW * 1000, expires_at=LATER)
    damaged = PresenceItem.from_item({**written, "joined_at_ms": damage, "expires_at": damage})
    assert damaged is not None
    assert is_present([damaged], LATER + 1)
    assert announces_join([damaged, item("b", 5)], "b", 5, NOW)


def test_only_the_oldest_connection_of_a_user_is_announced() -> None:
    both = [item("a", 5), item("b", 6)]
    assert announces_join(both, "a", 5, NOW)
    assert not announces_join(both, "b", 6, NOW)
    same_time = [item("a", 5), item("b", 5)]
    assert announces_join(same_time, "a", 5, NOW)
    assert not announces_join(same_time, "b", 5, NOW)


def test_a_departure_is_delayed_by_15_seconds() -> None:
    """Programs that count on it: workers and routes of other versions, and alerts on the queue's lag."""
    assert DEPARTURE_DELAY_SECONDS == 15


def test_a_connection_that_has_left_is_announced_for_those_that_relied_on_it_and_not_if_there_are_none() -> None:
    assert announces_join([item("b", 6)], "a", 5, NOW)
    assert not announces_join([], "a", 5, NOW)
    assert not announces_join([item("b", 6, NOW)], "a", 5, NOW)


def test_a_connection_that_has_rejoined_counts_with_its_first_join() -> None:
    rejoined = [item("a", 7), item("b", 6)]
    assert announces_join(rejoined, "a", 5, NOW)
    assert not announces_join(rejoined, "a", 7, NOW)


def test_a_repeated_join_is_announced_as_the_first_one_would_have_been() -> None:
    joined_at_ms = NOW * 1000
    both = [item("a", joined_at_ms), item("b", joined_at_ms + 1)]
    soon = NOW + REPEAT_SECONDS - 1
    assert announces_join(both, "a", None, soon)
    assert not announces_join(both, "b", None, soon)
    assert announces_join(both[1:], "b", None, soon)
    assert not announces_join(both, "c", None, soon)
    assert not announces_join([], "a", None, soon)


def test_a_member_that_repeats_its_join_later_announces_nothing() -> None:
    joined = [item("a", NOW * 1000)]
    assert not announces_join(joined, "a", None, NOW + REPEAT_SECONDS)
    unreadable = [PresenceItem("alice", "a", math.inf, LATER)]
    assert not announces_join(unreadable, "a", None, NOW)


def test_items_that_expire_soon_keep_no_join_from_being_announced() -> None:
    own = item("b", 6)
    assert announces_join([item("a", 5, NOW + EXPIRY_MARGIN_SECONDS), own], "b", 6, NOW)
    assert not announces_join([item("a", 5, NOW + EXPIRY_MARGIN_SECONDS + 1), own], "b", 6, NOW)


def test_a_user_is_present_until_the_last_item_expires() -> None:
    assert is_present([item("a", 5, NOW), item("b", 6, NOW + 1)], NOW)
    assert not is_present([item("a", 5, NOW)], NOW)
    assert not is_present([], NOW)


def test_users_who_are_present_have_not_departed() -> None:
    assert departed_users(("alice", "bob", "carol"), {"bob"}) == ("alice", "carol")


@pytest.mark.parametrize(
    ("members", "limit", "announced"),
    [(None, 1, True), (5, 5, True), (6, 5, False), (0, 5, True), (None, 0, False), (0, 0, False)],
)
def test_rooms_above_their_limit_have_no_events(members: int | None, limit: int, announced: bool) -> None:
    assert is_announced(members, limit) == announced


@pytest.mark.parametrize("make", [joined_broadcast, departed_broadcast])
@pytest.mark.parametrize("fifo", [False, True])
def test_events_are_valid_broadcasts_of_the_second_version(make: Any, fifo: bool) -> None:
    event = make("lobby", "alice", unique="ab12", published_at_ms=NOW * 1000)
    assert decode(queue_message(event, fifo=fifo)["MessageBody"]) == event
    assert (event.v, event.room, event.id, event.published_at_ms) == (2, "lobby", "%presence/ab12", NOW * 1000)
    change = (event.presence.joined, event.presence.departed)
    assert change == ((("alice",), ()) if make is joined_broadcast else ((), ("alice",)))


def test_a_users_items_are_those_whose_key_begins_with_the_name_and_a_space() -> None:
    query = user_query("gatecast", "lobby", "ali")
    assert query["ConsistentRead"]
    assert query["ExpressionAttributeValues"] == {":pk": {"S": "presence#lobby"}, ":user": {"S": "ali "}}
