"""GATECAST_MEMBERS: the table or index of the operator's own that is paged instead of Gatecast's memberships.

JSON, checked strictly: `MembersSource.parse` names the field that is wrong and what is expected. Whether such a table
exists is checked at the start (`members_check`). Pure.
"""

import difflib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from gatecast.addresses import is_queue_url

DELETE: Final = "delete"
"""The value of `on_gone` that lets the worker delete the items of gone connections."""
_NAME: Final = re.compile(r"[A-Za-z0-9_.\-]{3,255}")
_MAX_ATTRIBUTE_BYTES: Final = 255
_MAX_PATTERN_CHARACTERS: Final = 500
_PLACEHOLDER: Final = re.compile(r"(\{[^{}]*\})")
_ROOM: Final = "{room}"
_SHARD: Final = "{shard}"
_MAX_SHOWN_CHARACTERS: Final = 100
_EXPECTED_NAME: Final = "a name of 3 to 255 characters: letters, digits and _ . -"
_EXPECTED_ATTRIBUTE: Final = "the name of an attribute, 1 to 255 bytes long"
_EXPECTED_PATTERN: Final = (
    "a pattern of at most 500 characters with {room} once and, if rooms have shards, {shard} once, not divided by "
    "digits alone, such as room#{room}"
)


class InvalidMembers(Exception):
    """The message names the field and says what is expected, in one line."""


@dataclass(frozen=True, slots=True)
class KeyPattern:
    """A pattern of partition keys. No room's name can lead to another room's key, or to another shard's."""

    parts: tuple[str, ...]

    @property
    def has_shards(self) -> bool:
        return _SHARD in self.parts

    def value(self, room: str, shard: int) -> str:
        return "".join({_ROOM: room, _SHARD: str(shard)}.get(part, part) for part in self.parts)

    @classmethod
    def parse(cls, text: str) -> "KeyPattern":
        """Raises ValueError."""
        parts = tuple(part for part in _PLACEHOLDER.split(text) if part)
        plain = [part for part in parts if part not in (_ROOM, _SHARD)]
        if len(text) > _MAX_PATTERN_CHARACTERS or parts.count(_ROOM) != 1 or parts.count(_SHARD) > 1:
            raise ValueError
        if any("{" in part or "}" in part for part in plain):
            raise ValueError
        if _SHARD in parts:
            first, last = sorted((parts.index(_ROOM), parts.index(_SHARD)))
            if not re.search(r"[^0-9]", "".join(parts[first + 1 : last])):
                raise ValueError
        return cls(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class MembersSource:
    """The fields of GATECAST_MEMBERS. `pk`, `sk` and the like are names of attributes.

    `pk` is the partition key of what is paged: the index or, without one, the table. `sk` is its sort key; if that does
    not hold the connection id, `connection_id` does, and otherwise it is the same. In an index that is not sorted by
    connection id, `sk` may be the part of the table's key that holds it. `sk_prefix` precedes sort keys. `table_key` is
    the table's own key where that is not `pk` and `sk`; empty if it is not given.
    """

    table: str
    index: str | None = None
    pk: str
    pk_value: KeyPattern
    sk: str | None = None
    sk_prefix: str = ""
    connection_id: str
    table_key: tuple[str, ...] = ()
    expires_at: str | None = None
    joined_at_ms: str | None = None
    user: str | None = None
    on_gone: str = DELETE

    @property
    def gone_queue_url(self) -> str | None:
        """The queue that gone connections are sent to; None if the worker deletes their items."""
        return None if self.on_gone == DELETE else self.on_gone

    @property
    def id_prefix(self) -> str:
        """What precedes the connection id in its attribute."""
        return self.sk_prefix if self.connection_id == self.sk else ""

    @classmethod
    def parse(cls, text: str) -> "MembersSource":
        """Raises InvalidMembers."""
        given = _fields(text)
        for name in sorted(_REQUIRED - given.keys()):
            raise InvalidMembers(f"{name} is missing: expected {_FIELDS[name].expected}")
        fields = {name: _FIELDS[name].parse(name, value) for name, value in given.items()}
        if "sk" not in fields and "connection_id" not in fields:
            raise InvalidMembers(
                "sk is missing: expected the sort key, or connection_id if that holds no connection id"
            )
        if "sk" not in fields and "index" not in fields:
            raise InvalidMembers(
                "sk is missing: expected the table's sort key (without one it has one item per room: name an index)"
            )
        if "sk_prefix" in fields and "sk" not in fields:
            raise InvalidMembers("sk_prefix is given without sk: expected both, or neither")
        if "table_key" in fields and "index" not in fields:
            raise InvalidMembers("table_key is given without index: expected both, or neither")
        fields.setdefault("connection_id", fields.get("sk"))
        for name in ("sk", "connection_id"):
            if fields.get(name) == fields["pk"]:
                raise InvalidMembers(f"{name} is {_shown(fields['pk'])}, like pk: expected another attribute")
        return cls(**fields)


def _fields(text: str) -> dict[str, Any]:
    """Raises InvalidMembers."""
    try:
        given = json.loads(text, object_pairs_hook=_without_duplicates)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InvalidMembers(f"it is no JSON ({error}): expected {EXPECTED}") from None
    if not isinstance(given, dict):
        raise InvalidMembers(f"it is {_shown(given)}: expected {EXPECTED}")
    for name in given:
        if name not in _FIELDS:
            near = difflib.get_close_matches(name, _FIELDS, n=1)
            hint = f" (is {near[0]} meant?)" if near else ""
            raise InvalidMembers(f"{_shown(name)} is no field{hint}: expected {', '.join(_FIELDS)}")
    return given


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise InvalidMembers(f"{_shown(name)} is given twice: expected each field once")
        fields[name] = value
    return fields


def _shown(value: object) -> str:
    """The value for an error message, without a password that a URL may contain."""
    shown = re.sub(r"//[^/]*@", "//…@", repr(value))
    return shown if len(shown) <= _MAX_SHOWN_CHARACTERS else f"{shown[:_MAX_SHOWN_CHARACTERS]}…"


@dataclass(frozen=True, slots=True)
class _Field:
    """`read` raises ValueError or TypeError."""

    expected: str
    read: Callable[[Any], object]

    def parse(self, name: str, value: object) -> Any:
        """Raises InvalidMembers."""
        try:
            return self.read(value)
        except (ValueError, TypeError):
            raise InvalidMembers(f"{name} is {_shown(value)}: expected {self.expected}") from None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _name(value: object) -> str:
    if not _NAME.fullmatch(_text(value)):
        raise ValueError
    return str(value)


def _attribute(value: object) -> str:
    if not 1 <= len(_text(value).encode()) <= _MAX_ATTRIBUTE_BYTES:
        raise ValueError
    return str(value)


def _key(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= 2:  # noqa: PLR2004 - partition key and sort key
        raise TypeError
    names = tuple(map(_attribute, value))
    if len(set(names)) < len(names):
        raise ValueError
    return names


def _on_gone(value: object) -> str:
    if value != DELETE and not is_queue_url(_text(value)):
        raise ValueError
    return str(value)


_ATTRIBUTE: Final = _Field(_EXPECTED_ATTRIBUTE, _attribute)
_FIELDS: Final[Mapping[str, _Field]] = {
    "table": _Field(_EXPECTED_NAME, _name),
    "index": _Field(_EXPECTED_NAME, _name),
    "pk": _ATTRIBUTE,
    "pk_value": _Field(_EXPECTED_PATTERN, lambda value: KeyPattern.parse(_text(value))),
    "sk": _ATTRIBUTE,
    "sk_prefix": _Field("text of 1 to 255 bytes", _attribute),
    "connection_id": _ATTRIBUTE,
    "table_key": _Field("an array of the one or two attributes of the table's own key", _key),
    "expires_at": _ATTRIBUTE,
    "joined_at_ms": _ATTRIBUTE,
    "user": _ATTRIBUTE,
    "on_gone": _Field(f"{DELETE}, or the URL of an SQS queue (https://…/queue-name)", _on_gone),
}
_REQUIRED: Final = frozenset({"table", "pk", "pk_value"})
EXPECTED: Final = f"a JSON object with the fields {', '.join(_FIELDS)}"
