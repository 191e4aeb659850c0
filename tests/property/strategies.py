"""Strategies for valid broadcasts, biased towards edge cases."""

import json
from typing import Any

import msgspec
from hypothesis import strategies as st
from msgspec import UNSET

from gatecast import Broadcast
from gatecast.broadcast import (
    LARGEST_OFFSET,
    MAX_CONNECTION_ID_BYTES,
    MIN_TIME_MS,
    Close,
    Reference,
    for_sqs,
    utf8_length,
)

_PRINTABLE = "".join(map(chr, range(ord("!"), ord("~") + 1)))
_LARGEST = 2**53 - 1
_LATEST_MS = 1_795_000_000_000  # in 2026; the clock must not decide what is drawn


def names() -> st.SearchStrategy[str]:
    return st.text(_PRINTABLE, min_size=1, max_size=100) | st.sampled_from(["!", "~" * 100, "@all", "a#0", "a/b"])


def text(max_size: int | None = None, min_size: int = 0) -> st.SearchStrategy[str]:
    """Any text that UTF-8 can encode (no lone surrogates), including characters that SQS rejects and JSON escapes."""
    characters = st.characters(codec="utf-8") | st.sampled_from('\0\x1f\x7f"\\\ufffe\uffff\U0010ffff')
    return st.text(characters, min_size=min_size, max_size=max_size)


def connection_ids() -> st.SearchStrategy[str]:
    realistic = st.from_regex(r"[A-Za-z0-9_-]{15}=", fullmatch=True)
    return realistic | text(40, 1).filter(lambda one: utf8_length(one) <= MAX_CONNECTION_ID_BYTES)


def json_values() -> st.SearchStrategy[bytes]:
    """The bytes of JSON values: any key order, white space, large and precise numbers, duplicate keys."""
    numbers = st.integers().map(str) | st.from_regex(
        r"-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?", fullmatch=True
    )
    strings = text(20).map(lambda one: json.dumps(one, ensure_ascii=False)) | text(20).map(json.dumps)
    space = st.sampled_from(["", " ", "\n\t "])

    def containers(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        members = st.tuples(strings, space, values).map(lambda member: f"{member[0]}{member[1]}:{member[2]}")
        objects = st.lists(members, max_size=3).map(",".join).map("{{{}}}".format)
        arrays = st.lists(st.tuples(space, values).map("".join), max_size=3).map(",".join).map("[{}]".format)
        return objects | arrays

    scalars = numbers | strings | st.sampled_from(["true", "false", "null"])
    return st.recursive(scalars, containers, max_leaves=8).map(str.encode)


references = st.builds(
    Reference,
    bucket=st.from_regex(r"[a-z0-9][a-z0-9-]{1,20}[a-z0-9]", fullmatch=True),
    key=text(50, 1),
    bytes=st.integers(1, _LARGEST),
    content_type=st.sampled_from(["text/plain", "application/json; charset=utf-8"]),
)
closes = st.builds(Close, code=names(), retry=st.booleans())
messages: st.SearchStrategy[dict[str, Any]] = text(200, 1).map(lambda one: {"data": one}) | json_values().map(
    lambda value: {"json": msgspec.Raw(for_sqs(value))}
)
payloads: st.SearchStrategy[dict[str, Any]] = (
    messages | references.map(lambda one: {"reference": one}) | closes.map(lambda one: {"close": one, "v": 2})
)


@st.composite
def broadcasts(draw: st.DrawFn, payload: st.SearchStrategy[dict[str, Any]] = payloads) -> Broadcast:
    times = st.just(UNSET) | st.integers(MIN_TIME_MS, _LATEST_MS)
    to_room = draw(st.booleans())
    return Broadcast(
        id=draw(names()),
        **draw(payload),
        room=draw(names()) if to_room else UNSET,
        connections=UNSET if to_room else tuple(draw(st.lists(connection_ids(), min_size=1, max_size=5))),
        except_=draw(st.just(UNSET) | st.lists(connection_ids(), max_size=5).map(tuple)),
        published_at_ms=draw(times),
        expires_at_ms=draw(times),
        shard=draw(st.just(UNSET) | st.integers(0, _LARGEST)) if to_room else UNSET,
        offset=draw(st.just(UNSET) | st.integers(1, LARGEST_OFFSET)),
        origin_room=UNSET if to_room else draw(st.just(UNSET) | names()),
        from_=draw(st.just(UNSET) | names()),
        key=draw(st.just(UNSET) | names()),
        receipt=draw(st.just(UNSET) | st.booleans()),
        part=draw(st.just("") | st.sampled_from(["3", "r.17"]) | text(24)),
    )
