"""Whether the table that GATECAST_MEMBERS describes is as it says, and what follows from its keys. Pure.

The table's own description decides, if the worker may read it. If not, the setting has to be right: reads and deletions
with wrong keys fail, which is logged.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.members_setting import InvalidMembers, MembersSource


@dataclass(frozen=True, slots=True)
class MembersKeys:
    """The key attributes of a source of members.

    `table_key` are those of the table; `locator` those that a read needs to continue, besides the partition key that
    it reads. `is_consistent`: whether it can be read consistently, so that it contains every write that has returned.
    """

    table_key: tuple[str, ...]
    locator: tuple[str, ...]
    is_consistent: bool


def assumed_keys(source: MembersSource) -> MembersKeys:
    """The keys of a table that cannot be described."""
    sort_keys = (source.sk,) if source.sk else ()
    if source.index is None:
        return _keys(source, (source.pk, *sort_keys), sort_keys, is_consistent=True)
    return _keys(source, source.table_key or (source.connection_id,), sort_keys, is_consistent=False)


def check(source: MembersSource, table: Mapping[str, Any]) -> MembersKeys:
    """The keys of the table with this description: `Table` in the response of DescribeTable.

    Raises InvalidMembers if it is not as the setting says, and LookupError if it is no such description.
    """
    local = {each["IndexName"]: each for each in table.get("LocalSecondaryIndexes") or ()}
    global_ = {each["IndexName"]: each for each in table.get("GlobalSecondaryIndexes") or ()}
    types = {each["AttributeName"]: each["AttributeType"] for each in table["AttributeDefinitions"]}
    table_key = _names(table, "HASH") + _names(table, "RANGE")
    what, read = f"the table {source.table}", table
    if source.index is not None:
        what, found = f"the index {source.index}", local.get(source.index) or global_.get(source.index)
        if found is None:
            names = ", ".join(sorted([*local, *global_])) or "none"
            raise InvalidMembers(f"index is {source.index!r}: expected an index of the table (it has: {names})")
        read = found
    _check_keys(source, what, read, table_key, types)
    if source.table_key and set(source.table_key) != set(table_key):
        raise InvalidMembers(f"table_key is {list(source.table_key)}: expected {list(table_key)}, the table's key")
    if source.index in global_:
        _check_projection(source, global_[source.index]["Projection"], {*table_key, *_names(read, "RANGE")})
    return _keys(source, table_key, _names(read, "RANGE"), is_consistent=source.index not in global_)


def _keys(
    source: MembersSource, table_key: tuple[str, ...], sort_keys: tuple[str, ...], *, is_consistent: bool
) -> MembersKeys:
    locator = tuple(name for name in dict.fromkeys((*sort_keys, *table_key)) if name != source.pk)
    return MembersKeys(table_key, locator, is_consistent)


def _names(described: Mapping[str, Any], key_type: str) -> tuple[str, ...]:
    return tuple(each["AttributeName"] for each in described["KeySchema"] if each["KeyType"] == key_type)


def _check_keys(
    source: MembersSource,
    what: str,
    read: Mapping[str, Any],
    table_key: tuple[str, ...],
    types: Mapping[str, str],
) -> None:
    partition_keys, sort_keys = _names(read, "HASH"), _names(read, "RANGE")[:1]
    if partition_keys != (source.pk,):
        expected = " and ".join(map(repr, partition_keys))
        raise InvalidMembers(f"pk is {source.pk!r}: expected the partition key of {what}, which is {expected}")
    # An index need not be sorted by connection id: that may be in the table's own key.
    holds_id = source.index is not None and source.sk == source.connection_id and not source.sk_prefix
    allowed = (*sort_keys, *(name for name in table_key if holds_id and name not in (*sort_keys, source.pk)))
    if source.sk is not None and source.sk not in allowed:
        expected = f"the sort key of {what}" + (", or a part of the table's key," if holds_id else "")
        names = " or ".join(map(repr, allowed)) or "none"
        raise InvalidMembers(f"sk is {source.sk!r}: expected {expected} which is {names}")
    texts = {"pk": source.pk, "connection_id": source.connection_id} | ({"sk": source.sk} if source.sk_prefix else {})
    for field, name in texts.items():
        if types.get(str(name), "S") != "S":
            raise InvalidMembers(
                f"{field} is {name!r}: expected an attribute of type S, but its type is {types[str(name)]}"
            )


def _check_projection(source: MembersSource, projection: Mapping[str, Any], keys: set[str]) -> None:
    """A global index has only the attributes that are projected into it."""
    if projection["ProjectionType"] == "ALL":
        return
    projected = {*keys, source.pk, *(projection.get("NonKeyAttributes") or ())}
    for field in ("connection_id", "expires_at", "joined_at_ms", *(("user",) if source.gone_queue_url else ())):
        name = getattr(source, field)
        if name is not None and name not in projected:
            raise InvalidMembers(
                f"{field} is {name!r}: expected an attribute that is projected into the index {source.index}"
            )
