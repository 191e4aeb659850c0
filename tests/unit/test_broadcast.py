"""The message format of a broadcast, rule by rule."""

import json
import time
from enum import IntEnum, StrEnum
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from gatecast import Broadcast, InvalidBroadcast, decode, encode
from gatecast.broadcast import MAX_BODY_BYTES, MAX_DATA_BYTES, MIN_TIME_MS

TO_ROOM: dict[str, Any] = {"v": 1, "id": "42", "room": "lobby", "data": "hello"}
TO_CONNECTIONS: dict[str, Any] = {"v": 1, "id": "42", "connections": ["L0SM9cOFvHcCIhw="], "data": "hello"}
ABSENT = object()


def body(fields: dict[str, Any], **changes: Any) -> str:
    return json.dumps({name: value for name, value in {**fields, **changes}.items() if value is not ABSENT})


def test_a_broadcast_to_a_room() -> None:
    assert decode(body(TO_ROOM)) == Broadcast(id="42", room="lobby", data="hello")


def test_a_broadcast_to_connections_with_everything() -> None:
    times: dict[str, Any] = {"published_at_ms": 1_700_000_000_000, "expires_at_ms": 1_700_000_060_000}
    received = decode(body(TO_CONNECTIONS, **{"except": ["a"]}, part="3", **times))
    assert received == Broadcast(
        id="42", connections=("L0SM9cOFvHcCIhw=",), data="hello", except_=("a",), part="3", **times
    )


def test_absent_fields_are_unset_and_are_not_encoded() -> None:
    received = decode(body(TO_ROOM))
    assert received.connections is received.except_ is received.shard is received.expires_at_ms is UNSET
    assert received.part == ""
    assert json.loads(encode(received)) == {**TO_ROOM, "part": ""}


class Text(str):
    """As templates make it, for example to mark text as escaped."""

    __slots__ = ()


class Number(int):
    pass


def in_days(days: int) -> int:
    return int((time.time() + days * 24 * 3600) * 1000)


TRIED = "tried: expected probes, since_ms and evidence (int, int, float)"
NAMES: list[Any] = ["", "n" * 101, "two words", "zoë", "line\n", "\x7f", "\x1f", "\ud800", None, 7, ["a"], {}]
COUNTS: list[Any] = [-1, 1.5, "1", True, None, 2**53, 10**400, []]
TIMES: list[Any] = [0, 1_700_000_000, MIN_TIME_MS - 1, in_days(368), 1_700_000_000_000_000, 2**53 - 1]
IDS: list[Any] = [[""], ["c" * 129], ["é" * 65], [None], [7], ["\ud800"], "c", None, {}]

VERSIONS: list[Any] = [0, 3, "1", 1.0, True, None, ABSENT]
VIOLATIONS: list[tuple[str, dict[str, Any], Any]] = [
    *(("v", TO_ROOM, value) for value in VERSIONS),
    *(("id", TO_ROOM, value) for value in [*NAMES, ABSENT]),
    *(("room", TO_ROOM, value) for value in [*NAMES, ABSENT]),
    ("room", TO_CONNECTIONS, "lobby"),
    *(("connections", TO_CONNECTIONS, value) for value in [*IDS, [], ["c"] * 1_001]),
    *(
        ("data", TO_ROOM, value)
        for value in ["", "x" * 131_073, "é" * 65_537, "\ud800", "a\udfff", None, 7, {}, ABSENT]
    ),
    *(("except", TO_ROOM, value) for value in [["c"] * 1_001, [None], [7], ["\ud800"], "c", None, {}]),
    *(("published_at_ms", TO_ROOM, value) for value in [*COUNTS, *TIMES]),
    *(("expires_at_ms", TO_ROOM, value) for value in [*COUNTS, *TIMES]),
    *(("shard", TO_ROOM, value) for value in COUNTS),
    ("shard", TO_CONNECTIONS, 0),
    *(("from", TO_ROOM, value) for value in NAMES),
    *(("offset", TO_ROOM, value) for value in [0, -1, 10**16, 1.5, "7", None]),
    *(("origin_room", TO_CONNECTIONS, value) for value in NAMES),
    ("origin_room", TO_ROOM, "lobby"),
    *(
        ("presence", {**TO_ROOM, "v": 2, "data": ABSENT}, value)
        for value in [{"joined": [""]}, {"joined": "ada"}, [], None]
    ),
    ("presence", {**TO_ROOM, "data": ABSENT}, {"joined": ["ada"]}),
    ("presence", {**TO_CONNECTIONS, "v": 2, "data": ABSENT}, {"joined": ["ada"]}),
    *(("part", TO_ROOM, value) for value in ["p" * 25, "\ud800", None, 7, ["3"]]),
]


@pytest.mark.parametrize(
    ("field", "fields", "value"),
    VIOLATIONS,
    ids=[f"{number}-{field}" for number, (field, _, _) in enumerate(VIOLATIONS)],
)
def test_each_violation_names_its_field(field: str, fields: dict[str, Any], value: Any) -> None:
    with pytest.raises(InvalidBroadcast) as error:
        decode(body(fields, **{field: value}))
    assert error.value.field == field
    assert str(error.value) == f"{field}: {error.value.reason}"


REFERENCE = {"bucket": "payloads", "key": "a/b c", "bytes": 200_000, "content_type": "text/plain"}
TO_JSON: dict[str, Any] = {**TO_ROOM, "data": ABSENT}


def with_json(value: str) -> str:
    return body(TO_JSON)[:-1] + f', "json": {value}}}'


@pytest.mark.parametrize(
    "value",
    [
        "0",
        "null",
        '""',
        "[]",
        "12345678901234567890123456789",
        "1e400",
        "-0.0",
        '{"b": 1,  "a":\t[ 2 ,3 ],\n"b": 1.10}',
        '"\\u00e9 é \\/"',
        "[" * 128 + "]" * 128,
        '["' + "[" * 1_000 + '"]',
        '"' + "x" * (MAX_DATA_BYTES - 2) + '"',
    ],
    ids=range(12),
)
def test_the_bytes_of_json_are_passed_on_unchanged(value: str) -> None:
    received = decode(with_json(value))
    assert bytes(received.json or b"") == value.encode()
    assert f'"json":{value},' in encode(received)
    assert decode(encode(received)) == received


@pytest.mark.parametrize(
    "value",
    [
        "[" * 129 + "]" * 129,
        '{"a":' * 129 + "1" + "}" * 129,
        '["\\"",' + "[" * 128 + "]" * 128 + "]",
        '"' + "x" * (MAX_DATA_BYTES - 1) + '"',
    ],
    ids=range(4),
)
def test_json_has_limits(value: str) -> None:
    with pytest.raises(InvalidBroadcast) as error:
        decode(with_json(value))
    assert error.value.field == "json"


@pytest.mark.parametrize("value", ["tru", "01", "{", '"\\ud800"', "NaN", "[1,]", "", "'a'", "1 2"])
def test_json_that_is_not_json_makes_the_body_invalid(value: str) -> None:
    with pytest.raises(InvalidBroadcast):
        decode(with_json(value))


def test_invalid_utf8_in_json_is_rejected() -> None:
    with pytest.raises(InvalidBroadcast, match="not valid UTF-8"):
        decode(b'{"v":1,"id":"a","room":"r","json":"\xff"}')


@pytest.mark.parametrize("value", [b"tru", b"", b"1 2", b'1,"room":"@all"', b'1,"json":1', b'"\xff"', b"1}"])
def test_only_one_json_value_is_encoded(value: bytes) -> None:
    """Anything else would change other fields of the body."""
    with pytest.raises(InvalidBroadcast) as error:
        encode(Broadcast(id="42", room="lobby", json=msgspec.Raw(value)))
    assert error.value.field == "json"


def test_white_space_around_json_and_characters_that_sqs_rejects_are_replaced() -> None:
    encoded = encode(Broadcast(id="42", room="lobby", json=msgspec.Raw(' "\ufffe"\n'.encode())))
    assert decode(encoded).json == msgspec.Raw(b'"\\ufffe"')


def test_exactly_one_payload_is_given() -> None:
    for changes in (
        {},
        {"data": "x", "json": 1},
        {"data": "x", "v": 2, "presence": {}},
        {"data": "x", "reference": REFERENCE},
        {"reference": REFERENCE, "v": 2, "close": {"code": "kicked", "retry": False}},
    ):
        with pytest.raises(InvalidBroadcast, match="exactly one of `data`, `json` and `reference`"):
            decode(body(TO_JSON, **changes))


@pytest.mark.parametrize(
    ("field", "changes", "reason"),
    [
        ("close", {"close": {"code": "kicked", "retry": False}}, "requires `v` 2"),
        ("close", {"v": 2, "close": {"code": "kicked"}}, "missing required field `retry`"),
        ("close", {"v": 2, "close": {"code": "two words", "retry": True}}, "expected 1 to 100 characters from ! to ~$"),
        ("close", {"v": 2, "close": {"code": "kicked", "retry": 1}}, "Expected `bool`"),
        ("reference", {"reference": {**REFERENCE, "bucket": "A"}}, "expected the name of a bucket$"),
        ("reference", {"reference": {**REFERENCE, "key": ""}}, "expected at least 1 character$"),
        ("reference", {"reference": {**REFERENCE, "key": "é" * 513}}, "key: longer than 1,024 bytes"),
        ("reference", {"reference": {**REFERENCE, "bytes": 0}}, ">= 1"),
        (
            "reference",
            {"reference": {**REFERENCE, "content_type": "a\nb"}},
            "expected 1 to 255 printable ASCII characters$",
        ),
        ("receipt", {"data": "x", "receipt": 1}, "Expected `bool`"),
        ("key", {"data": "x", "key": "two words"}, "expected 1 to 100 characters from ! to ~$"),
    ],
    ids=range(11),
)
def test_references_and_closes_have_their_rules(field: str, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidBroadcast, match=reason) as error:
        decode(body(TO_JSON, **changes))
    assert error.value.field == field


@pytest.mark.parametrize(
    ("fields", "changes"),
    [
        (TO_ROOM, {"id": "!", "room": "~" * 100}),
        (TO_ROOM, {"data": "x" * 131_072}),
        (TO_ROOM, {"data": "é" * 65_536}),
        (TO_ROOM, {"data": "\U0001f600"}),
        (TO_ROOM, {"except": ["c"] * 1_000}),
        (TO_ROOM, {"except": []}),
        (TO_ROOM, {"part": "p" * 24}),
        (TO_ROOM, {"part": "pärt"}),
        (TO_ROOM, {"shard": 0, "published_at_ms": MIN_TIME_MS, "expires_at_ms": in_days(364)}),
        (TO_ROOM, {"room": "@all"}),
        (TO_CONNECTIONS, {"connections": ["é" * 64] * 1_000}),
        (TO_ROOM, {"from": "@ada", "key": "k", "offset": 10**16 - 1}),
        (TO_CONNECTIONS, {"origin_room": "lobby", "offset": 1}),
        ({**TO_ROOM, "v": 2, "data": ABSENT}, {"presence": {"joined": ["ada"], "departed": ["bob"]}}),
        (TO_ROOM, {"colour": "blue", "nested": {"a": [1, None, 1e300]}}),
        (TO_JSON, {"reference": {**REFERENCE, "key": "k" * 1_024, "content_type": "a" * 255}, "receipt": True}),
        (TO_JSON, {"v": 2, "close": {"code": "kicked", "retry": False}}),
    ],
    ids=range(17),
)
def test_the_limits_themselves_are_allowed(fields: dict[str, Any], changes: dict[str, Any]) -> None:
    received = decode(body(fields, **changes))
    assert decode(encode(received)) == received


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "[]",
        "null",
        '"v"',
        body(TO_ROOM) + "}",
        body(TO_ROOM)[:-1],
        "\ufeff" + body(TO_ROOM),
        body(TO_ROOM, extra=float("nan")),
        "\ud800",
        "[" * 100_000,
        body(TO_ROOM)[:-1] + ',"x":' + '{"y":' * 100_000,
        b'{"v":1,"id":"a","room":"r","data":"\xff"}',
    ],
    ids=range(13),
)
def test_a_body_that_is_not_a_json_object_is_invalid_as_a_whole(text: str | bytes) -> None:
    with pytest.raises(InvalidBroadcast) as error:
        decode(text)
    assert error.value.field == "body"


def test_an_unknown_version_is_reported_before_any_other_field() -> None:
    with pytest.raises(InvalidBroadcast) as error:
        decode('{"id": 7, "room": ["a", "b"], "audience": {}, "v": 3}')
    assert error.value.field == "v"


def test_the_body_has_its_own_size_limit() -> None:
    padding = MAX_BODY_BYTES - len(body(TO_ROOM, x=""))
    assert decode(body(TO_ROOM, x="y" * padding)).id == "42"
    with pytest.raises(InvalidBroadcast) as error:
        decode(body(TO_ROOM, x="y" * (padding + 1)))
    assert error.value.field == "body"


def test_the_largest_data_fits_even_if_every_character_is_escaped() -> None:
    everyone = tuple(f"{number:0128}" for number in range(1_000))
    broadcast = Broadcast(id="42", room="lobby", data="\0" * 131_072, except_=everyone)
    assert decode(encode(broadcast)) == broadcast


@pytest.mark.parametrize(
    ("field", "attribute", "value"),
    [
        ("id", "id", "two words"),
        ("room", "room", ""),
        ("data", "data", ""),
        ("data", "data", "\ud800"),
        ("room", "room", "\ud800"),
        ("except", "except_", ("\ud800",)),
        ("part", "part", "p" * 25),
        ("shard", "shard", -1),
        ("v", "v", 3),
    ],
)
def test_what_could_not_be_decoded_is_not_encoded(field: str, attribute: str, value: Any) -> None:
    broadcast = Broadcast(**{"id": "42", "room": "lobby", "data": "hello", attribute: value})
    with pytest.raises(InvalidBroadcast) as error:
        encode(broadcast)
    assert error.value.field == field


@pytest.mark.parametrize(
    "fields",
    [{}, {"room": "lobby", "connections": ("a",)}, {"connections": ("a",), "shard": 0}, {"connections": ("",)}],
)
def test_contradictory_fields_are_rejected_by_the_constructor(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^(room|shard|connections): "):
        Broadcast(id="42", data="hello", **fields)


def test_characters_that_sqs_rejects_are_escaped() -> None:
    broadcast = Broadcast(id="42", room="lobby", data="\ufffe\uffff\ufffd\0")
    assert r'"\ufffe\uffff' in encode(broadcast)
    assert "\ufffe" not in encode(broadcast)
    assert decode(encode(broadcast)) == broadcast


@pytest.mark.parametrize("field", ["published_at_ms", "expires_at_ms"])
def test_a_time_in_seconds_is_named_as_such(field: str) -> None:
    times: dict[str, Any] = {field: 1_764_200_000}
    with pytest.raises(InvalidBroadcast, match=rf"^{field}: 1764200000 is not a time in milliseconds .* seconds$"):
        Broadcast(id="42", room="lobby", data="hello", **times)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": b"x"}, "data: expected text (str), got bytes; decode bytes to text, and serialise objects to JSON"),
        ({"data": {"price": 1}}, "data: expected text (str), got dict; decode bytes to text"),
        ({"data": None}, "data: expected text (str), got NoneType"),
        ({"id": 42}, "id: expected text (str), got int"),
        ({"room": b"lobby"}, "room: expected text (str), got bytes"),
        ({"room": None, "connections": ("a",)}, "room: expected text (str), got NoneType"),
        ({"room": UNSET, "connections": "L0SM9cOFvHcCIhw="}, "connections: expected a tuple or list, got str"),
        ({"room": UNSET, "connections": (b"a",)}, "connections: expected ids as text (str), got bytes"),
        ({"except_": {"a"}}, "except: expected a tuple or list, got set"),
        ({"except_": ("a", 7)}, "except: expected ids as text (str), got int"),
        ({"except_": (Text("a"), 7)}, "except: expected ids as text (str), got int"),
        ({"v": "1"}, "v: expected a whole number (int), got str"),
        ({"v": True}, "v: expected a whole number (int), got bool"),
        ({"v": UNSET}, "v: expected a whole number (int), got UnsetType"),
        ({"tried": "8"}, "tried: expected a tuple or list, got str"),
        ({"tried": (8, MIN_TIME_MS)}, f"{TRIED}, got (int, int)"),
        ({"tried": (8, object(), 2.0)}, f"{TRIED}, got (int, object, float)"),
        ({"tried": (True, MIN_TIME_MS, 2.0)}, f"{TRIED}, got (bool, int, float)"),
        ({"tried": (8, 1_764_200_000, 2.0)}, "tried: 1764200000 is not a time in milliseconds since the epoch: this"),
        ({"expires_at_ms": 1.7e12}, "expires_at_ms: expected a whole number (int), got float"),
        ({"published_at_ms": True}, "published_at_ms: expected a whole number (int), got bool"),
        ({"shard": "0"}, "shard: expected a whole number (int), got str"),
        ({"part": 3}, "part: expected text (str), got int"),
    ],
)  # fmt: skip
def test_a_wrong_type_is_named_where_the_object_is_made(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidBroadcast) as error:
        Broadcast(**{"id": "42", "room": "lobby", "data": "hello", **fields})
    assert str(error.value).startswith(message)


def test_derived_types_are_sent_as_what_they_are_derived_from() -> None:
    class Shard(IntEnum):
        THIRD = 3

    made = Broadcast(
        id=Text("42"), connections=(Text("a"),), except_=(Text("b"),), data=Text("é"), expires_at_ms=Number(MIN_TIME_MS)
    )
    assert decode(encode(made)) == Broadcast(
        id="42", connections=("a",), except_=("b",), data="é", expires_at_ms=MIN_TIME_MS
    )
    assert decode(encode(Broadcast(id="42", room="lobby", data="x", shard=Shard.THIRD))).shard == 3


def test_lists_become_tuples_and_enumerations_are_text() -> None:
    class Room(StrEnum):
        LOBBY = "lobby"

    assert Broadcast(id="42", connections=["a"], except_=["b"], data="x") == Broadcast(  # type: ignore[arg-type]
        id="42", connections=("a",), except_=("b",), data="x"
    )
    assert decode(encode(Broadcast(id="42", room=Room.LOBBY, data="x"))).room == "lobby"


def test_the_envelope_of_sns_is_named() -> None:
    envelope = {"Type": "Notification", "TopicArn": "arn:aws:sns:eu-west-1:0:t", "Message": body(TO_ROOM)}
    with pytest.raises(InvalidBroadcast, match=r"^body: an SNS notification around the message: enable raw message"):
        decode(json.dumps(envelope))
