"""What members of each dialect are posted."""

import json
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from gatecast import Broadcast
from gatecast.broadcast import Presence
from gatecast.frames import MAX_FRAME_BYTES, V1, V2
from worker.delivery.bodies import EXCLUDED, TOO_LARGE, Bodies, Body

PUBLISHED_AT_MS = 1_700_000_000_000
RAW = b'{"b": 1.50, "a": 9007199254740993, "b": [ ]}'


def bodies(**fields: Any) -> Bodies:
    if not fields.keys() & {"data", "json", "presence"}:
        fields["data"] = "hello"
    fields.setdefault("room", "lobby" if "connections" not in fields else UNSET)
    return Bodies(Broadcast(id="one", published_at_ms=PUBLISHED_AT_MS, **fields))


def frame(made: Bodies, *, excluded: bool = False) -> Any:
    body = made.body(V2 + EXCLUDED * excluded)
    assert body.frames == V2
    return json.loads(body.payload)


@pytest.mark.parametrize(("payload", "posted"), [({"data": "é\n"}, "é\n".encode()), ({"json": msgspec.Raw(RAW)}, RAW)])
def test_v1_connections_receive_the_payload_as_it_is(payload: dict[str, Any], posted: bytes) -> None:
    for more in ({}, {"offset": 7}, {"from_": "ann"}):
        body = bodies(**payload, **more).body(V1)
        assert (body.payload, body.frames) == (posted, V1)


def test_v2_connections_receive_a_frame_with_the_offset_where_there_is_one() -> None:
    message = {"id": "one", "published_at_ms": PUBLISHED_AT_MS, "data": "hello"}
    assert frame(bodies()) == {"type": "messages", "room": "lobby", "messages": [message]}
    found = frame(bodies(offset=7, from_="ann"))
    assert found["messages"] == [{**message, "from": "ann", "offset": 7}]
    assert "skipped" not in found


def test_json_is_in_the_frame_byte_for_byte() -> None:
    assert RAW in bodies(json=msgspec.Raw(RAW)).body(V2).payload


def test_the_frame_of_a_broadcast_to_connections_names_the_room_that_it_comes_from() -> None:
    assert frame(bodies(connections=("c=",), origin_room="lobby"))["room"] == "lobby"
    assert "room" not in frame(bodies(connections=("c=",)))


def test_excluded_members_receive_nothing_but_the_offset_if_they_use_v2() -> None:
    with_offset, without = bodies(offset=7), bodies()
    assert not with_offset.skips(V2 + EXCLUDED)
    assert frame(with_offset, excluded=True) == {
        "type": "messages",
        "room": "lobby",
        "messages": [],
        "skipped": [[7, 7]],
    }
    assert with_offset.skips(V1 + EXCLUDED)
    assert without.skips(V1 + EXCLUDED)
    assert without.skips(V2 + EXCLUDED)
    assert not any(each.skips(dialect) for each in (with_offset, without) for dialect in (V1, V2))


def test_a_change_of_presence_is_for_v2_connections_only() -> None:
    presence = Presence(joined=("ann",), departed=("bob",))
    made = bodies(presence=presence, v=2)
    assert made.skips(V1)
    assert not made.skips(V2)
    assert frame(made) == {
        "type": "presence",
        "room": "lobby",
        "joined": ["ann"],
        "departed": ["bob"],
        "at_ms": PUBLISHED_AT_MS,
    }
    remainder = bodies(presence=presence, v=2, connections=("c=",), origin_room="lobby")
    assert frame(remainder) == frame(made)


def test_the_frame_of_a_change_of_presence_can_be_given() -> None:
    broadcast = Broadcast(id="one", room="lobby", presence=Presence(departed=("ann", "bob")), v=2)
    given = b'{"type":"presence","departed":["bob"]}'
    assert Bodies(broadcast, given).body(V2).payload == given


def longest_data(**fields: Any) -> int:
    return MAX_FRAME_BYTES - (len(bodies(data="x", **fields).body(V2).payload) - 1)


def test_a_frame_may_be_as_long_as_api_gateway_accepts_and_no_longer() -> None:
    size = longest_data(offset=7)
    assert len(bodies(offset=7, data="x" * size).body(V2).payload) == MAX_FRAME_BYTES
    longer = bodies(offset=7, data="x" * (size + 1))
    assert longer.body(V2) is TOO_LARGE
    assert longer.body(V1).payload == b"x" * (size + 1)
    assert longer.has_frames
    assert longer.body(V2) is TOO_LARGE
    assert frame(longer, excluded=True)["skipped"] == [[7, 7]], "the offset alone can be posted"


def test_bodies_are_made_once_and_only_those_that_are_needed() -> None:
    made = bodies(offset=7)
    assert (made.held_bytes, made.has_frames) == (0, False)
    payload = made.body(V1)
    assert (made.held_bytes, made.has_frames) == (5, False)
    found: list[Body] = [made.body(variant) for variant in (V2, V2 + EXCLUDED)]
    assert [made.body(variant) for variant in (V2, V2 + EXCLUDED)] == found, "the same objects"
    assert made.body(V1) is payload
    assert made.held_bytes == 5 + sum(len(each.payload) for each in found)
    assert made.has_frames
