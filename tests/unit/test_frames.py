"""What v2 connections receive, byte by byte, and the items of a room's history."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from gatecast import Broadcast, frames, table
from gatecast.entries import Entry, entry_item
from gatecast.frames import Message
from tests.property.strategies import broadcasts, payloads, text

AT_MS = 1_790_000_000_000
AT = AT_MS // 1000
REFERENCE = {
    "bucket": {"S": "payloads"},
    "key": {"S": "a"},
    "bytes": {"N": "5"},
    "content_type": {"S": "text/plain"},
}


def test_a_message_of_a_room_with_history() -> None:
    broadcast = Broadcast(id="@ada/1", room="lobby", data='say "é"', from_="ada", offset=7, published_at_ms=AT_MS)
    assert frames.broadcast_frame(broadcast).decode() == (
        '{"type":"messages","room":"lobby","messages":[{"id":"@ada/1","from":"ada","offset":7,'
        f'"published_at_ms":{AT_MS},"data":"say \\"é\\""}}]}}'
    )


def test_absent_fields_are_absent() -> None:
    broadcast = Broadcast(id="1", connections=("c=",), json=msgspec.Raw(b"[1.0,  2]"), published_at_ms=AT_MS)
    assert frames.broadcast_frame(broadcast).decode() == (
        f'{{"type":"messages","messages":[{{"id":"1","published_at_ms":{AT_MS},"json":[1.0,  2]}}]}}'
    )


def test_a_broadcast_to_former_members_names_their_room() -> None:
    broadcast = Broadcast(id="1", connections=("c=",), origin_room="lobby", offset=7, data="x", published_at_ms=AT_MS)
    frame = json.loads(frames.broadcast_frame(broadcast))
    assert (frame["room"], frame["messages"][0]["offset"]) == ("lobby", 7)


def test_an_excluded_connection_gets_the_offset_without_the_message() -> None:
    broadcast = Broadcast(id="1", room="lobby", data="secret", offset=7, published_at_ms=AT_MS)
    assert json.loads(frames.skipping_frame(broadcast)) == {
        "type": "messages",
        "room": "lobby",
        "messages": [],
        "skipped": [[7, 7]],
    }


def test_presence_and_the_end_of_a_connection() -> None:
    assert json.loads(frames.presence("lobby", joined=["ada"], at_ms=AT_MS)) == {
        "type": "presence",
        "room": "lobby",
        "joined": ["ada"],
        "departed": [],
        "at_ms": AT_MS,
    }
    assert json.loads(frames.closed("token_expired", retry=True)) == {
        "type": "closed",
        "code": "token_expired",
        "retry": True,
    }


@given(broadcasts())
def test_every_broadcast_has_a_frame_from_which_its_message_can_be_read(broadcast: Broadcast) -> None:
    frame = msgspec.json.decode(frames.broadcast_frame(broadcast), type=dict[str, msgspec.Raw])
    [encoded] = msgspec.json.decode(frame["messages"], type=list[msgspec.Raw])
    message = msgspec.json.decode(encoded, type=Message)
    assert message == Message.from_broadcast(broadcast)
    if broadcast.json is not UNSET:
        assert bytes(broadcast.json or b"") in frames.broadcast_frame(broadcast)


@given(
    payloads.filter(lambda one: "close" not in one),
    st.integers(1, 2**53 - 1),
    st.none() | text(20, 1),
    st.none() | st.integers(AT_MS, AT_MS * 2),
)
def test_a_stream_entry_is_read_as_it_was_written(
    payload: dict[str, Any], offset: int, from_: str | None, expires_at_ms: int | None
) -> None:
    reference = payload.pop("reference", UNSET)
    message = Message(id="1", offset=offset, published_at_ms=AT_MS, from_=UNSET if from_ is None else from_, **payload)
    item = entry_item("lobby", message, expires_at=AT, message_expires_at_ms=expires_at_ms, reference=reference)
    assert Entry.from_item(item) == (message, AT, expires_at_ms, reference or None)
    assert item["sk"]["S"] == f"m#{offset:016d}"


@pytest.mark.parametrize(
    "changes",
    [
        {"sk": {"S": "head"}},
        {"sk": {"S": "m#7"}},
        {"sk": {"N": "7"}},
        {"id": {"N": "1"}},
        {"id": None},
        {"data": None},
        {"data": {"N": "1"}},
        {"json": {"S": "1"}},
        {"data": None, "json": {"S": "{"}},
        {"reference": {"M": REFERENCE}},
        {"data": None, "reference": {"S": "key"}},
        {"data": None, "reference": {"M": {**REFERENCE, "bucket": {"S": "UPPER"}}}},
        {"data": None, "reference": {"M": {**REFERENCE, "bytes": {"N": "1.5"}}}},
        {"data": None, "reference": {"M": {"key": {"S": "a"}}}},
        {"sk": {"S": f"m#{2**53}"}},
        {"published_at_ms": {"N": str(2**53)}},
        {"published_at_ms": {"N": "-1e300"}},
    ],
    ids=range(17),
)
def test_an_entry_that_cannot_be_delivered_is_none(changes: dict[str, Any]) -> None:
    message = Message(id="1", offset=7, published_at_ms=AT_MS, data="x")
    item: dict[str, Any] = entry_item("lobby", message, expires_at=AT)
    assert Entry.from_item(item) is not None
    assert Entry.from_item({**item, **changes}) is None


@pytest.mark.parametrize(
    ("head", "offset"),
    [
        (None, None),
        ({}, None),
        ({"offset": {"N": "7"}}, 7),
        ({"offset": {"S": "x"}}, None),
        ({"offset": {"N": "-1"}}, None),
    ],
)
def test_the_offset_of_a_head(head: dict[str, Any] | None, offset: int | None) -> None:
    assert table.offset_of_head(head) == offset
