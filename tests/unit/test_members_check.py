"""Whether a described table is the one that GATECAST_MEMBERS names, and what its keys are."""

from typing import Any

import pytest

from worker.members_check import MembersKeys, assumed_keys, check
from worker.members_setting import InvalidMembers, KeyPattern, MembersSource

ALL = {"ProjectionType": "ALL"}


def keys(**kinds: str) -> list[dict[str, str]]:
    return [{"AttributeName": name, "KeyType": kind} for name, kind in kinds.items()]


def index(name: str, projection: dict[str, Any] | None = None, **kinds: str) -> dict[str, Any]:
    return {"IndexName": name, "KeySchema": keys(**kinds), "Projection": projection or ALL}


def described(*indexes: dict[str, Any], kind: str = "Global", numbers: tuple[str, ...] = (), **kinds: str) -> Any:
    """A table with these keys and indexes. Keys are of type S, except for `numbers`."""
    names = {each["AttributeName"] for schema in (keys(**kinds), *(i["KeySchema"] for i in indexes)) for each in schema}
    return {
        "KeySchema": keys(**kinds),
        "AttributeDefinitions": [
            {"AttributeName": name, "AttributeType": "N" if name in numbers else "S"} for name in sorted(names)
        ],
        **({f"{kind}SecondaryIndexes": list(indexes)} if indexes else {}),
    }


def source(**fields: Any) -> MembersSource:
    defaults: dict[str, Any] = {
        "table": "connections",
        "pk": "room",
        "pk_value": KeyPattern.parse("{room}"),
        "connection_id": "id",
    }
    return MembersSource(**{**defaults, **fields})


BY_ROOM = index("byRoom", room="HASH")
SORTED = index("sorted", room="HASH", joined="RANGE")


def test_a_table_is_read_consistently_and_its_sort_key_is_a_locator() -> None:
    table = described(room="HASH", id="RANGE")
    expected = MembersKeys(("room", "id"), ("id",), is_consistent=True)
    assert check(source(sk="id"), table) == expected
    assert assumed_keys(source(sk="id")) == expected


@pytest.mark.parametrize(
    ("members", "table", "expected"),
    [
        (source(index="byRoom"), described(BY_ROOM, id="HASH"), MembersKeys(("id",), ("id",), is_consistent=False)),
        (
            source(index="byRoom"),
            described(BY_ROOM, id="HASH", room="RANGE"),
            MembersKeys(("id", "room"), ("id",), is_consistent=False),
        ),
        (
            source(index="sorted", sk="joined"),
            described(SORTED, id="HASH", joined="RANGE", numbers=("joined",)),
            MembersKeys(("id", "joined"), ("joined", "id"), is_consistent=False),
        ),
        (
            source(index="sorted"),  # the sort key need not be named
            described(SORTED, subscription="HASH"),
            MembersKeys(("subscription",), ("joined", "subscription"), is_consistent=False),
        ),
    ],
)
def test_a_global_index_is_not_and_a_locator_in_it_has_the_keys_of_both(
    members: MembersSource, table: Any, expected: MembersKeys
) -> None:
    assert check(members, table) == expected


def test_the_connection_id_of_an_index_may_be_in_the_tables_key() -> None:
    expected = MembersKeys(("id",), ("id",), is_consistent=False)
    assert check(source(index="byRoom", sk="id"), described(BY_ROOM, id="HASH")) == expected
    expected = MembersKeys(("tenant", "id"), ("joined", "tenant", "id"), is_consistent=False)
    assert check(source(index="sorted", sk="id"), described(SORTED, tenant="HASH", id="RANGE")) == expected


def test_a_local_index_is_read_consistently() -> None:
    table = described(SORTED, kind="Local", room="HASH", id="RANGE")
    assert check(source(index="sorted"), table) == MembersKeys(("room", "id"), ("joined", "id"), is_consistent=True)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (source(index="byRoom"), MembersKeys(("id",), ("id",), is_consistent=False)),
        (source(index="byRoom", sk="id"), MembersKeys(("id",), ("id",), is_consistent=False)),
        (
            source(index="byRoom", sk="since", table_key=("id", "room")),
            MembersKeys(("id", "room"), ("since", "id"), is_consistent=False),
        ),
    ],
)
def test_without_a_description_the_setting_has_to_be_right(members: MembersSource, expected: MembersKeys) -> None:
    assert assumed_keys(members) == expected


@pytest.mark.parametrize(
    ("members", "table", "message"),
    [
        (
            source(sk="id"),
            described(roomId="HASH", id="RANGE"),
            "pk is 'room': expected the partition key of the table ",
        ),
        (
            source(sk="id"),
            described(room="HASH", cid="RANGE"),
            "sk is 'id': expected the sort key of the table .* is 'cid'",
        ),
        (source(sk="id"), described(room="HASH"), "sk is 'id': expected the sort key of the table .* is none"),
        (
            source(index="byRoom", sk="cid", connection_id="cid"),
            described(BY_ROOM, id="HASH"),
            "sk is 'cid': .* is 'id'",
        ),
        (
            source(index="byRoom", sk="cid"),
            described(BY_ROOM, id="HASH"),
            "sk is 'cid': expected the sort key .* is none",
        ),
        (
            source(index="byRoom", sk="id", sk_prefix="C#"),
            described(BY_ROOM, id="HASH"),
            "sk is 'id': expected the sort key of the index byRoom which is none",
        ),
        (source(index="byUser"), described(BY_ROOM, id="HASH"), r"index is 'byUser': .*\(it has: byRoom\)"),
        (source(index="byUser"), described(id="HASH"), r"index is 'byUser': expected an index .*\(it has: none\)"),
        (source(sk="id"), described(room="HASH", id="RANGE", numbers=("room",)), "pk is 'room': .* type S, but .* N"),
        (
            source(sk="id"),
            described(room="HASH", id="RANGE", numbers=("id",)),
            "connection_id is 'id': .* its type is N",
        ),
        (
            source(sk="since", sk_prefix="C#", connection_id="cid"),
            described(room="HASH", since="RANGE", numbers=("since",)),
            "sk is 'since': expected an attribute of type S",
        ),
        (
            source(index="byRoom", table_key=("id",)),
            described(BY_ROOM, id="HASH", room="RANGE"),
            r"table_key is \['id'\]: expected \['id', 'room'\]",
        ),
        (
            source(index="wide"),
            described(index("wide", room="HASH") | {"KeySchema": keys(room="HASH", tenant="HASH")}, id="HASH"),
            "pk is 'room': .* which is 'room' and 'tenant'",
        ),
    ],
)
def test_what_is_different_is_named(members: MembersSource, table: Any, message: str) -> None:
    with pytest.raises(InvalidMembers, match=f"^{message}"):
        check(members, table)


def test_a_global_index_must_have_what_is_read_from_it() -> None:
    projection: dict[str, Any] = {"ProjectionType": "INCLUDE", "NonKeyAttributes": ["ttl", "user"]}
    table = described(index("byRoom", projection, room="HASH"), id="HASH")
    assert check(source(index="byRoom", expires_at="ttl"), table).locator == ("id",)
    with pytest.raises(InvalidMembers, match=r"^joined_at_ms is 'since': expected an attribute that is projected"):
        check(source(index="byRoom", joined_at_ms="since"), table)
    keys_only = described(index("byRoom", {"ProjectionType": "KEYS_ONLY"}, room="HASH"), number="HASH")
    with pytest.raises(InvalidMembers, match=r"^connection_id is 'id': expected an attribute that is projected"):
        check(source(index="byRoom"), keys_only)


def test_the_user_is_read_only_for_a_queue() -> None:
    table = described(index("byRoom", {"ProjectionType": "KEYS_ONLY"}, room="HASH"), id="HASH")
    members = source(index="byRoom", user="user")
    assert check(members, table).locator == ("id",)
    with pytest.raises(InvalidMembers, match=r"^user is 'user': expected an attribute that is projected"):
        check(source(index="byRoom", user="user", on_gone="https://sqs.eu-west-1.amazonaws.com/1/gone"), table)


@pytest.mark.parametrize("description", [{}, {"KeySchema": [], "AttributeDefinitions": [{}]}])
def test_what_is_no_description_is_a_lookup_error(description: Any) -> None:
    with pytest.raises(LookupError):
        check(source(sk="id"), description)
