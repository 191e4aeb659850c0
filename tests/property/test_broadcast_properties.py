"""The codec: it decodes what it encodes, names the invalid field, and raises nothing but InvalidBroadcast."""

import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from gatecast import Broadcast, InvalidBroadcast, decode, encode, queue_message
from gatecast.broadcast import MAX_BODY_BYTES, MAX_DATA_BYTES
from tests.property.strategies import broadcasts, names, text

FIELDS = {*Broadcast.__struct_encode_fields__, "body"}
SQS_NAME = set(map(chr, range(ord("!"), ord("~") + 1)))


@given(broadcasts())
def test_encoding_and_decoding_round_trips(broadcast: Broadcast) -> None:
    assert decode(encode(broadcast)) == broadcast
    assert decode(encode(broadcast).encode()) == broadcast


@given(broadcasts())
def test_sqs_accepts_every_character(broadcast: Broadcast) -> None:
    """Allowed by SendMessage: #x9 | #xA | #xD | #x20 to #xD7FF | #xE000 to #xFFFD | #x10000 to #x10FFFF."""
    assert not {c for c in encode(broadcast) if (c < " " and c not in "\t\n\r") or c in "\ufffe\uffff"}


@given(broadcasts(), st.booleans())
@example(Broadcast(id="~" * 100, room="~" * 100, data="x", shard=2**53 - 1, part="~" * 24), True)
@example(Broadcast(id="i", room="r", data="\0" * MAX_DATA_BYTES), True)
def test_a_queue_message_is_within_the_limits_of_sqs(broadcast: Broadcast, fifo: bool) -> None:
    message = queue_message(broadcast, fifo=fifo)
    assert len(message["MessageBody"].encode()) <= MAX_BODY_BYTES
    for name in message.keys() - {"MessageBody"}:
        assert 1 <= len(message[name]) <= 128
        assert set(message[name]) <= SQS_NAME
    assert ("MessageDeduplicationId" in message) == fifo


PARTS = st.sampled_from(["", "s1", "s10", "r.17", "a\0b"])
NEAR_NAMES = st.sampled_from(["a", "a#1", "a~", "a~s1", "s1", "b"]) | names()


@given(NEAR_NAMES, NEAR_NAMES, PARTS, NEAR_NAMES, NEAR_NAMES, PARTS)
def test_deduplication_ids_of_different_broadcasts_differ(
    room: str, one: str, part: str, others: str, other: str, its: str
) -> None:
    def key(room: str, broadcast_id: str, part: str) -> str:
        broadcast = Broadcast(id=broadcast_id, room=room, data="x", part=part)
        return str(queue_message(broadcast, fifo=True)["MessageDeduplicationId"])

    assert (key(room, one, part) == key(others, other, its)) == ((room, one, part) == (others, other, its))


@given(NEAR_NAMES, NEAR_NAMES, st.integers(0, 2**53 - 1), st.integers(0, 20), names())
def test_groups_of_shards_are_unique(room: str, other: str, shard: int, others: int, broadcast_id: str) -> None:
    def group(room: str, shard: int) -> str:
        part = Broadcast(id=broadcast_id, room=room, data="x", shard=shard, part="s")
        return str(queue_message(part, fifo=True)["MessageGroupId"])

    assert (group(room, shard) == group(other, others)) == ((room, shard) == (other, others))
    assert group(room, shard) not in {room, other, broadcast_id}
    assert len(group(room, shard)) > 100


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def decoding_error(body: str | bytes) -> InvalidBroadcast | None:
    try:
        broadcast = decode(body)
    except InvalidBroadcast as error:
        return error
    assert decode(encode(broadcast)) == broadcast
    return None


def decodes_or_rejects(body: str | bytes) -> None:
    error = decoding_error(body)
    assert error is None or (error.field in FIELDS and error.reason)


@given(st.binary() | st.text() | text())
@example("")
@example("null")
@example("[" * 200_000)
@example('{"v":1,"x":' * 100_000)
@example('{"v":1,"id":"a","room":"r","data":"x","z":' + "[" * 900 + "]" * 900 + ',"part":"\\ud800"}')
@example('{"v":' + "1" * 10_000 + "}")
@example(b'{"v":1,"id":"\xff"}')
@example(b"\xef\xbb\xbf{}")
@example(b"\xff\xfe{\0}\0")
def test_any_text_is_decoded_or_rejected(body: str | bytes) -> None:
    decodes_or_rejects(body)


@given(json_values)
def test_any_json_is_decoded_or_rejected(value: Any) -> None:
    decodes_or_rejects(json.dumps(value))


@given(broadcasts(), st.sampled_from(sorted(FIELDS)), json_values)
def test_any_value_of_a_field_is_decoded_or_rejected(broadcast: Broadcast, field: str, value: Any) -> None:
    decodes_or_rejects(json.dumps({**json.loads(encode(broadcast)), field: value}))


@given(broadcasts(), st.data())
def test_a_damaged_body_is_decoded_or_rejected(broadcast: Broadcast, data: st.DataObject) -> None:
    body = bytearray(encode(broadcast).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(body) - 1))
        match data.draw(st.sampled_from(["change", "cut", "double"])):
            case "change":
                body[position] = data.draw(st.integers(0, 255))
            case "cut":
                del body[position : position + data.draw(st.integers(1, 8))]
            case "double":
                body[position:position] = body[position : position + 8]
        if not body:
            break
    decodes_or_rejects(bytes(body))


@given(broadcasts(), st.dictionaries(text().map(lambda name: f"x-{name}"), json_values, max_size=3))
def test_other_fields_are_ignored(broadcast: Broadcast, others: dict[str, Any]) -> None:
    body = json.dumps(others, allow_nan=True)[:-1] + (", " if others else "") + encode(broadcast)[1:]
    if "NaN" not in body and "Infinity" not in body and "\\ud" not in body:
        assert decode(body) == broadcast


@given(broadcasts(), st.sampled_from(["id", "room", "data", "except", "connections", "part"]))
def test_a_lone_surrogate_is_rejected_with_the_field_name(broadcast: Broadcast, field: str) -> None:
    fields = {**json.loads(encode(broadcast))}
    if field in {"room", "connections"}:
        fields = {"v": 1, "id": "a", "data": "x"}
    fields[field] = ["\ud800"] if field in {"except", "connections"} else "a\udfff"
    error = decoding_error(json.dumps(fields))
    assert error
    assert error.field == field
