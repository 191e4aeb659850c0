"""What a program publishes: the queue messages and objects that become of it, and what is rejected."""

import json
import math
from hashlib import sha256
from typing import Any

import msgspec
import pytest

from gatecast import Broadcast, InvalidBroadcast, Publication, decode
from gatecast.broadcast import MAX_DATA_BYTES, MIN_TIME_MS, Close, Reference
from gatecast.frames import MAX_FRAME_BYTES, broadcast_frame
from gatecast.publisher.publication import Destination, Prepared, prepare

NOW_MS = MIN_TIME_MS + 1_000_000
STANDARD = Destination(fifo=False)
FIFO = Destination(fifo=True)
BUCKET = Destination(fifo=False, bucket="payloads")


def prepared(to: Destination = STANDARD, **fields: Any) -> Prepared:
    return prepare(Publication(**fields), to, now_ms=NOW_MS)  # type: ignore[typeddict-item]


def broadcast(to: Destination = STANDARD, **fields: Any) -> Broadcast:
    return decode(prepared(to, **fields).message["MessageBody"])


def test_every_field_of_a_publication_becomes_one_of_the_broadcast() -> None:
    made = broadcast(
        room="lobby", json={"a": 1}, id="42", from_="ann", except_={"c="}, key="price", receipt=True, expires_in=1.5
    )
    assert made == Broadcast(
        id="42", room="lobby", json=msgspec.Raw(b'{"a":1}'), from_="ann", except_=("c=",), key="price", receipt=True,
        published_at_ms=NOW_MS, expires_at_ms=NOW_MS + 1_500,
    )  # fmt: skip


def test_what_is_none_or_empty_is_absent() -> None:
    made = broadcast(
        room="lobby", user=None, connections=None, data="hello", payload=None, id=None, from_=None, except_=(),
        key=None, receipt=None, expires_in=None, delay=None,
    )  # fmt: skip
    assert made == Broadcast(id=made.id, room="lobby", data="hello", published_at_ms=NOW_MS)
    assert broadcast(room="lobby", data="x", receipt=False).receipt is False


def test_a_message_without_an_id_gets_a_new_one() -> None:
    first, second = (prepared(room="lobby", data="hello") for _ in range(2))
    assert first.id != second.id
    assert decode(first.message["MessageBody"]).id == first.id


@pytest.mark.parametrize("to", [STANDARD, FIFO])
def test_a_user_is_a_room(to: Destination) -> None:
    assert broadcast(to, user="ann", data="hello").room == "@user/ann"
    assert prepared(to, user="ann", data="hello").message["MessageGroupId"] == "@user/ann"


@pytest.mark.parametrize("ids", [["a", "b"], ("a", "b"), {"a": 1, "b": 2}])
def test_connections_are_any_collection(ids: Any) -> None:
    assert broadcast(connections=ids, data="hello").connections == ("a", "b")


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (None, b"null"),
        ({"price": 12.5, "ü": [True, None]}, '{"price":12.5,"ü":[true,null]}'.encode()),
        (2**70, str(2**70).encode()),
        ("text", b'"text"'),
        ("\ufffe\uffff", rb'"\ufffe\uffff"'),
        (msgspec.Raw(b' {"a": 1e400} '), b'{"a": 1e400}'),
    ],
)
def test_json_is_any_value_or_encoded_already(value: Any, encoded: bytes) -> None:
    made = broadcast(room="lobby", json=value)
    assert isinstance(made.json, msgspec.Raw)
    assert bytes(made.json).strip() == encoded


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"data": "x"}, "room: exactly one of `room`, `user` and `connections`"),
        ({"room": "a", "user": "b", "data": "x"}, "room: exactly one of"),
        ({"room": "a"}, "data: exactly one of `data`, `json` and `payload`"),
        ({"room": "a", "data": "x", "json": None}, "data: exactly one of"),
        ({"room": "two words", "data": "x"}, "room: "),
        ({"room": 5, "data": "x"}, "room: expected text"),
        ({"user": "", "data": "x"}, "user: expected a name of 1 to 94 characters"),
        ({"user": "two words", "data": "x"}, "user: "),
        ({"user": "a" * 95, "data": "x"}, "user: "),
        ({"user": 5, "data": "x"}, "user: "),
        ({"connections": "abc", "data": "x"}, "connections: expected a tuple or list, got str"),
        ({"connections": [], "data": "x"}, "connections: "),
        ({"connections": [5], "data": "x"}, "connections: "),
        ({"room": "a", "data": "x", "id": "two words"}, "id: "),
        ({"room": "a", "data": "x", "id": 5}, "id: "),
        ({"room": "a", "data": ""}, "data: "),
        ({"room": "a", "data": b"x"}, "data: expected text"),
        ({"room": "a", "data": "\ud800"}, "data: half of a surrogate pair"),
        ({"room": "a", "json": math.nan}, "json: not possible as JSON"),
        ({"room": "a", "json": [{"a": -math.inf}]}, "json: not possible as JSON"),
        ({"room": "a", "json": object()}, "json: not possible as JSON"),
        ({"room": "a", "json": "\ud800"}, "json: not possible as JSON"),
        ({"room": "a", "json": msgspec.Raw(b"{")}, "json: not valid JSON"),
        ({"room": "a", "json": msgspec.Raw(b'1, "v": 2')}, "json: not valid JSON"),
        ({"room": "a", "json": msgspec.Raw(b"NaN")}, "json: not valid JSON"),
        ({"room": "a", "data": "x", "content_type": "text/plain"}, "content_type: only `payload` has one"),
        (
            {"room": "a", "data": "x", "expires_in": 0},
            "expires_in: expected a number of seconds, above 0 and up to a year",
        ),
        ({"room": "a", "data": "x", "expires_in": math.nan}, "expires_in: "),
        ({"room": "a", "data": "x", "expires_in": math.inf}, "expires_in: "),
        ({"room": "a", "data": "x", "expires_in": "60"}, "expires_in: "),
        ({"room": "a", "data": "x", "expires_in": True}, "expires_in: "),
        ({"room": "a", "data": "x", "expires_in": 366 * 24 * 3600}, "expires_in: "),
        ({"room": "a", "data": "x", "delay": -1}, "delay: expected a whole number of seconds from 0 to 900"),
        ({"room": "a", "data": "x", "delay": 901}, "delay: "),
        ({"room": "a", "data": "x", "delay": 1.5}, "delay: "),
        ({"room": "a", "data": "x", "key": "two words"}, "key: "),
        ({"room": "a", "data": "x", "receipt": 1}, "receipt: "),
        ({"room": "a", "data": "x", "from_": "two words"}, "from: "),
        ({"room": "a", "data": "x", "except_": "abc"}, "except: "),
    ],
)
def test_every_wrong_field_is_named(fields: dict[str, Any], names: str) -> None:
    with pytest.raises(InvalidBroadcast) as caught:
        prepared(**fields)
    assert str(caught.value).startswith(names), caught.value


def test_a_fifo_queue_delays_nothing() -> None:
    with pytest.raises(InvalidBroadcast, match="delay: a FIFO queue delays no single message"):
        prepared(FIFO, room="a", data="x", delay=1)
    assert "DelaySeconds" not in prepared(FIFO, room="a", data="x", delay=0).message


def test_a_delayed_message_is_published_after_its_delay_and_lives_from_then_on() -> None:
    message = prepared(room="a", data="x", delay=60, expires_in=30).message
    made = decode(message["MessageBody"])
    assert message["DelaySeconds"] == 60
    assert (made.published_at_ms, made.expires_at_ms) == (NOW_MS + 60_000, NOW_MS + 90_000)


@pytest.mark.parametrize("message", ["text", 5, None, [("room", "a")]])
def test_what_is_no_message_is_rejected(message: Any) -> None:
    with pytest.raises(TypeError, match="expected a Broadcast or a Publication, got"):
        prepare(message, STANDARD, now_ms=NOW_MS)


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(TypeError, match="unknown: rom; expected connections, content_type"):
        prepared(rom="lobby", data="x")


def test_a_broadcast_is_published_as_it_is() -> None:
    for each in (
        Broadcast(id="1", room="a", data="x"),
        Broadcast(id="1", room="a", v=2, close=Close(code="banned", retry=False)),
        Broadcast(id="1", room="a", reference=Reference(bucket="other", key="k", bytes=1, content_type="text/plain")),
    ):
        for to in (STANDARD, FIFO, BUCKET, Destination(fifo=False, bucket="payloads", reference_above=1)):
            assert decode(prepare(each, to, now_ms=NOW_MS).message["MessageBody"]) == each


# Objects


def upload(to: Destination = BUCKET, **fields: Any) -> dict[str, Any]:
    made = prepared(to, **fields)
    assert made.upload
    return made.upload


def test_a_payload_that_is_too_large_becomes_an_object() -> None:
    text = "ü" * MAX_DATA_BYTES
    made = prepared(BUCKET, room="lobby", data=text, id="42", expires_in=60)
    assert made.upload == {
        "Bucket": "payloads",
        "Key": sha256(b"lobby\x0042\0\0text/plain; charset=utf-8\0" + text.encode()).hexdigest(),
        "Body": text.encode(),
        "ContentType": "text/plain; charset=utf-8",
    }
    reference = Reference(
        bucket="payloads", key=made.upload["Key"], bytes=2 * MAX_DATA_BYTES, content_type="text/plain; charset=utf-8"
    )
    assert decode(made.message["MessageBody"]) == Broadcast(
        id="42", room="lobby", reference=reference, published_at_ms=NOW_MS, expires_at_ms=NOW_MS + 60_000
    )


def test_json_and_bytes_become_objects_with_their_types() -> None:
    value = ["x" * MAX_DATA_BYTES]
    stored = upload(room="lobby", json=value)
    assert (json.loads(stored["Body"]), stored["ContentType"]) == (value, "application/json")
    stored = upload(room="lobby", payload=b"\x89PNG", content_type="image/png")
    assert (stored["Body"], stored["ContentType"]) == (b"\x89PNG", "image/png")
    assert upload(room="lobby", payload=b"x")["ContentType"] == "application/octet-stream"


def test_the_limit_is_the_configured_one() -> None:
    to = Destination(fifo=False, bucket="payloads", reference_above=3)
    assert prepared(to, room="lobby", data="abc").upload is None
    assert prepared(to, room="lobby", data="abü").upload
    assert prepare(Broadcast(id="1", room="a", data="abcd"), to, now_ms=NOW_MS).upload
    assert prepared(Destination(fifo=False, bucket="payloads", reference_above=0), room="a", json=1).upload


def test_what_has_no_frame_of_v2_becomes_an_object_if_there_is_a_bucket() -> None:
    quotes = '"' * (MAX_DATA_BYTES // 2)  # each of them takes two bytes in a frame
    frame = len(broadcast_frame(Broadcast(id="42", room="lobby", data="", offset=10**16 - 1, published_at_ms=NOW_MS)))
    fitting = "x" * (MAX_FRAME_BYTES - frame)
    for message in (
        Publication(room="lobby", data=fitting, id="42"),
        Broadcast(room="lobby", data=fitting, id="42"),
    ):
        assert prepare(message, BUCKET, now_ms=NOW_MS).upload is None
    for message in (
        Publication(room="lobby", data=fitting + "x", id="42"),
        Broadcast(room="lobby", data=fitting + "x", id="42"),
        Publication(room="lobby", data=quotes, id="42"),
    ):
        assert prepare(message, BUCKET, now_ms=NOW_MS).upload
        assert prepare(message, STANDARD, now_ms=NOW_MS).upload is None


def test_a_retry_stores_the_same_object_and_nothing_else_does() -> None:
    fields: dict[str, Any] = {"room": "lobby", "payload": b"x", "id": "42"}
    key = upload(**fields)["Key"]
    again = prepare(Publication(**fields), BUCKET, now_ms=NOW_MS + 1)  # type: ignore[typeddict-item]
    assert again.upload == upload(**fields)
    others: list[dict[str, Any]] = [
        {**fields, "room": "hall"},
        {**fields, "payload": b"y"},
        {**fields, "id": "43"},
        {**fields, "content_type": "text/html"},
        {"connections": ["a"], "payload": b"x", "id": "42"},
    ]
    assert len({key, *(upload(**each)["Key"] for each in others)}) == 1 + len(others)


@pytest.mark.parametrize("room", ["../../etc", "/", "a/../b", "//", "."])
def test_no_name_is_part_of_a_key(room: str) -> None:
    key = upload(room=room, payload=b"x", id=room)["Key"]
    assert len(key) == 64
    assert set(key) <= set("0123456789abcdef")


def test_a_large_payload_without_a_bucket_says_what_to_do() -> None:
    hint = "create the publisher with `s3` and `bucket`, and clients receive a URL"
    with pytest.raises(InvalidBroadcast, match=f"data: 131,073 bytes, more than 131,072: {hint}"):
        prepared(room="lobby", data="x" * (MAX_DATA_BYTES + 1))
    with pytest.raises(InvalidBroadcast, match="json: 131,074 bytes, more than 131,072"):
        prepared(room="lobby", json="x" * MAX_DATA_BYTES)
    with pytest.raises(InvalidBroadcast, match=f"payload: 1 bytes, which only a bucket can hold: {hint}"):
        prepared(room="lobby", payload=b"x")


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"payload": b""}, "payload: expected bytes"),
        ({"payload": "text"}, "payload: expected bytes"),
        ({"payload": b"x", "content_type": "text/html\r\nX-Evil: 1"}, "content_type: "),
        ({"payload": b"x", "content_type": ""}, "content_type: "),
        ({"payload": b"x", "content_type": 5}, "content_type: "),
        ({"payload": b"x", "id": "two words"}, "id: "),
        ({"payload": b"x", "id": "\ud800"}, "id: "),
        ({"data": "\ud800" * MAX_DATA_BYTES}, "data: half of a surrogate pair"),
        ({"json": msgspec.Raw(b"1" + b" " * MAX_DATA_BYTES + b"2")}, "json: not valid JSON"),
    ],
)
def test_what_is_invalid_is_never_uploaded(fields: dict[str, Any], names: str) -> None:
    with pytest.raises(InvalidBroadcast) as caught:
        prepared(BUCKET, room="lobby", **fields)
    assert str(caught.value).startswith(names), caught.value


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"bucket": "Not A Bucket"}, "bucket: 'Not A Bucket' is not the name of an S3 bucket"),
        ({"bucket": "payloads", "reference_above": -1}, "reference_above: "),
        ({"bucket": "payloads", "reference_above": MAX_DATA_BYTES + 1}, "reference_above: "),
        ({"bucket": "payloads", "reference_above": 1.5}, "reference_above: "),
        ({"reference_above": 1}, "reference_above: requires a bucket"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], names: str) -> None:
    with pytest.raises(ValueError, match=names):
        Destination(fifo=False, **options)
