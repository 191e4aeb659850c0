"""GATECAST_MEMBERS: each kind of wrong value is named, with what is expected; and what partition keys it makes."""

import json
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.members_setting import KeyPattern, MembersSource
from worker.settings import ConfigurationError, Settings

REQUIRED = {
    "GATECAST_QUEUE_URL": "https://sqs.eu-west-1.amazonaws.com/123456789012/broadcasts",
    "GATECAST_TABLE": "gatecast",
    "GATECAST_CONNECTIONS_ENDPOINT": "https://abc.execute-api.eu-west-1.amazonaws.com/live",
}
TABLE = {"table": "connections", "pk": "room", "pk_value": "room#{room}", "sk": "connectionId"}
INDEX = {"table": "connections", "index": "byRoom", "pk": "room", "pk_value": "{room}", "connection_id": "connectionId"}
QUEUE_URL = "https://sqs.eu-west-1.amazonaws.com/123456789012/gone"


def parse(fields: dict[str, Any]) -> MembersSource:
    return MembersSource.parse(json.dumps(fields))


def settings(text: str) -> Settings:
    return Settings.from_environ({**REQUIRED, "GATECAST_MEMBERS": text})


def test_what_is_not_given_has_defaults() -> None:
    source = parse(TABLE)
    assert (source.table, source.index, source.pk, source.sk) == ("connections", None, "room", "connectionId")
    assert (source.connection_id, source.id_prefix, source.table_key) == ("connectionId", "", ())
    assert (source.expires_at, source.joined_at_ms, source.user) == (None, None, None)
    assert source.gone_queue_url is None
    assert Settings.from_environ(REQUIRED).members is None


def test_everything_can_be_given() -> None:
    times = {"expires_at": "ttl", "joined_at_ms": "joinedAt", "user": "user-id", "on_gone": QUEUE_URL}
    source = parse({**INDEX, **times, "sk": "since", "table_key": ["connectionId", "room"]})
    assert (source.index, source.sk, source.connection_id) == ("byRoom", "since", "connectionId")
    assert (source.expires_at, source.joined_at_ms, source.user) == ("ttl", "joinedAt", "user-id")
    assert (source.table_key, source.gone_queue_url) == (("connectionId", "room"), QUEUE_URL)
    assert parse({**TABLE, "on_gone": "delete"}).gone_queue_url is None


def test_a_prefix_of_the_sort_key_precedes_the_connection_id_only_where_the_sort_key_holds_it() -> None:
    assert parse({**TABLE, "sk_prefix": "CONNECTION#"}).id_prefix == "CONNECTION#"
    assert parse({**TABLE, "sk_prefix": "CONNECTION#", "connection_id": "id"}).id_prefix == ""


@pytest.mark.parametrize("text", ["", "{", "nonsense", "[]", "7", "null", '"room"', "[" * 100_000])
def test_what_is_no_json_object_is_rejected(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^GATECAST_MEMBERS(: it)? is .*expected a JSON object"):
        settings(text)


@pytest.mark.parametrize("name", ["table", "pk", "pk_value"])
def test_required_fields(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^GATECAST_MEMBERS: {name} is missing: expected "):
        settings(json.dumps({each: value for each, value in TABLE.items() if each != name}))


def test_unknown_and_repeated_fields_are_rejected() -> None:
    with pytest.raises(ConfigurationError, match=r"'idx' is no field \(is index meant\?\): expected table, index, pk"):
        settings(json.dumps({**TABLE, "idx": "byRoom"}))
    with pytest.raises(ConfigurationError, match=r"^GATECAST_MEMBERS: 'frames' is no field: expected table"):
        settings(json.dumps({**TABLE, "frames": "frames"}))
    with pytest.raises(ConfigurationError, match="'sk' is given twice: expected each field once"):
        settings(json.dumps(TABLE)[:-1] + ', "sk": "other"}')


@pytest.mark.parametrize("name", ["table", "index", "pk", "pk_value", "sk", "sk_prefix", "connection_id"])
@pytest.mark.parametrize("value", [None, 7, "", True, ["a"], {"S": "a"}, "x" * 600, "\ud800"])
def test_texts(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=rf"^GATECAST_MEMBERS: {name} is .*: expected [^\n]*$"):
        settings(json.dumps({**INDEX, "sk": "since", name: value}))


@pytest.mark.parametrize("name", ["expires_at", "joined_at_ms", "user"])
@pytest.mark.parametrize("value", [None, 7, "", "x" * 256])
def test_attributes(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} is .*: expected the name of an attribute"):
        settings(json.dumps({**TABLE, name: value}))


@pytest.mark.parametrize("value", ["a", [], ["a", "a"], ["a", "b", "c"], [7], [""], None])
def test_the_tables_key(value: object) -> None:
    with pytest.raises(ConfigurationError, match=r"table_key is .*: expected an array of the one or two attributes"):
        settings(json.dumps({**INDEX, "table_key": value}))


@pytest.mark.parametrize(
    "value", ["keep", "Delete", "", None, 7, "arn:aws:sqs:eu-west-1:1:gone", "https://host", "sqs"]
)
def test_on_gone(value: object) -> None:
    with pytest.raises(ConfigurationError, match=r"on_gone is .*: expected delete, or the URL of an SQS queue"):
        settings(json.dumps({**TABLE, "on_gone": value}))


def test_a_password_is_not_shown() -> None:
    with pytest.raises(ConfigurationError) as raised:
        settings(json.dumps({**TABLE, "on_gone": "https://user:secret@host"}))
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sk": None, "connection_id": "id"}, "sk is missing: expected the table's sort key .* name an index"),
        ({"sk": None, "index": "byRoom"}, "sk is missing: expected the sort key, or connection_id"),
        ({"sk": None, "index": "byRoom", "connection_id": "id", "sk_prefix": "C#"}, "sk_prefix is given without sk"),
        ({"table_key": ["id"]}, "table_key is given without index"),
        ({"sk": "room"}, "sk is 'room', like pk: expected another attribute"),
        ({"connection_id": "room"}, "connection_id is 'room', like pk: expected another attribute"),
    ],
)
def test_fields_that_contradict_each_other(fields: dict[str, Any], message: str) -> None:
    given_fields = {name: value for name, value in {**TABLE, **fields}.items() if value is not None}
    with pytest.raises(ConfigurationError, match=f"^GATECAST_MEMBERS: {message}"):
        settings(json.dumps(given_fields))


def test_gone_connections_cannot_go_to_a_queue_of_gatecasts() -> None:
    for name in ("GATECAST_QUEUE_URL", "GATECAST_DEAD_LETTER_QUEUE_URL"):
        members = json.dumps({**TABLE, "on_gone": QUEUE_URL})
        with pytest.raises(ConfigurationError, match=f"on_gone is .*, the same queue as {name}: expected another one"):
            Settings.from_environ({**REQUIRED, name: QUEUE_URL, "GATECAST_MEMBERS": members})


# Partition keys


@pytest.mark.parametrize(
    "pattern",
    ["room", "{room}{room}", "{Room}", "{room", "room}", "{room}{", "{room}#{user}", "{room}{shard}", "{shard}7{room}",
     "{room}#{shard}#{shard}", "{shard}", "{{room}}"],
)  # fmt: skip
def test_patterns_that_make_no_key_or_ambiguous_ones_are_rejected(pattern: str) -> None:
    with pytest.raises(ConfigurationError, match=r"pk_value is .*: expected a pattern of at most 500 characters"):
        settings(json.dumps({**TABLE, "pk_value": pattern}))


@pytest.mark.parametrize(
    ("pattern", "value"),
    [
        ("{room}", "chat/7"),
        ("room#{room}", "room#chat/7"),
        ("CHANNEL#{room}#members", "CHANNEL#chat/7#members"),
        ("{room}#{shard}", "chat/7#3"),
        ("{shard}/{room}", "3/chat/7"),
    ],
)
def test_patterns(pattern: str, value: str) -> None:
    parsed = KeyPattern.parse(pattern)
    assert parsed.value("chat/7", 3) == value
    assert parsed.has_shards is ("{shard}" in pattern)


rooms = st.text("0123456789#{}roomshard", min_size=1, max_size=12)
keys_of_rooms = st.tuples(rooms, st.integers(0, 999))


@given(
    pattern=st.sampled_from(["{room}#{shard}", "{shard}#{room}", "r{room}-1{shard}2", "{shard}a{room}0", "x{room}"]),
    one=keys_of_rooms,
    other=keys_of_rooms,
)
def test_no_room_has_the_key_of_another_one_or_of_another_shard(
    pattern: str, one: tuple[str, int], other: tuple[str, int]
) -> None:
    """Names of rooms come from clients: `{shard}` in one is text like any other."""
    parsed = KeyPattern.parse(pattern)
    if not parsed.has_shards:
        one, other = (one[0], 0), (other[0], 0)
    assert (parsed.value(*one) == parsed.value(*other)) == (one == other)


def test_the_keys_of_short_names_are_all_different() -> None:
    for pattern in ("{room}#{shard}", "{shard}#{room}"):
        parsed = KeyPattern.parse(pattern)
        names = ["".join(each) for length in (1, 2, 3) for each in product("01#", repeat=length)]
        made = [parsed.value(room, shard) for room in names for shard in range(12)]
        assert len(set(made)) == len(made)
