"""What clients publish as JSON reaches the queue, the frames and the responses with its bytes unchanged."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gatecast import decode, encode
from gatecast.broadcast import LARGEST_OFFSET, MAX_NESTING
from gatecast.frames import MAX_FRAME_BYTES, Message, broadcast_frame
from routes.publishing import PublishRequest, to_broadcast
from routes.requests import MAX_BODY_BYTES, Caller, parse
from routes.responses import MAX_MESSAGE_BYTES, Code, RequestRejected, ok

CALLER = Caller(
    connection_id="L0SM9cOFvHcCIhw=", connected_at_ms=0, requested_at_ms=1_700_000_000_000, user="alice", frames=2
)
spaces = st.sampled_from(["", " ", "\n", "\t ", "\r\n"])
numbers = st.integers().map(str) | st.sampled_from(
    ["9007199254740993", "-0", "0.10", "1e400", "-1E-400", "1.0000000000000000000001", "123456789012345678901234567890"]
)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffe\uffff"), max_size=8)
strings = texts.map(lambda text: json.dumps(text, ensure_ascii=False)) | texts.map(json.dumps)
scalars = numbers | strings | st.sampled_from(["null", "true", "false"])


def _array(parts: list[tuple[str, str]]) -> str:
    return "[" + ",".join(f"{space}{value}{space}" for value, space in parts) + "]"


def _object(parts: list[tuple[str, str, str]]) -> str:
    return "{" + ",".join(f"{space}{key}{space}:{value}" for key, value, space in parts) + "}"


values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(st.tuples(inner, spaces), max_size=4).map(_array)
        | st.lists(st.tuples(strings, inner, spaces), max_size=4).map(_object)
    ),
    max_leaves=12,
)


def published(value: str, **fields: Any) -> PublishRequest:
    others = "".join(f",{json.dumps(name)}:{json.dumps(each)}" for name, each in fields.items())
    return parse(f'{{"action":"publish","room":"lobby","json":{value}{others}}}', PublishRequest)


@given(values, spaces)
@example('{"b":9007199254740993,"a":1e400,"a":[ 1 ,2]}', "\n")
@example('"\\u00e9\\/\\ufffe"', "")
@example("[" * MAX_NESTING + "]" * MAX_NESTING, "")
def test_the_bytes_of_json_are_not_changed(value: str, space: str) -> None:
    request = published(f"{space}{value}{space}", id="1")
    body = encode(to_broadcast(request, CALLER, generated_id="-"))
    assert f'"json":{value}' in body
    broadcast = decode(body)
    assert bytes(broadcast.json or b"").decode().strip() == value
    assert f'"json":{value}'.encode() in broadcast_frame(broadcast)
    message = Message.from_broadcast(broadcast).encode()
    assert f'"json":{value}' in ok("join", {"room": "lobby", "messages": [message]})["body"]


@pytest.mark.parametrize("depth", [MAX_NESTING + 1, 500, 3_000, 60_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_json_that_is_nested_too_deep_is_rejected(opening: str, closing: str, depth: int) -> None:
    value = opening * depth + "1" + closing * depth
    if len(value) > MAX_BODY_BYTES - 100:
        value = opening * depth
    with pytest.raises(RequestRejected) as rejection:
        to_broadcast(published(value), CALLER, generated_id="-")
    assert rejection.value.code in {Code.BAD_REQUEST, Code.TOO_LARGE}


lengths = st.integers(128_000, 131_072) | st.integers(20_000, 66_000)


@settings(max_examples=60, deadline=None)
@given(lengths, st.sampled_from(["x", "é", "\x00", '"', "\n"]), st.booleans())
def test_what_fits_into_a_response_is_accepted_and_nothing_else(length: int, filler: str, is_json: bool) -> None:
    text = filler * (length // len(filler.encode()))
    payload: dict[str, Any] = {"json": msgspec.Raw(msgspec.json.encode(text))} if is_json else {"data": text}
    request = PublishRequest("lobby", id="1", **payload)
    try:
        broadcast = to_broadcast(request, CALLER, generated_id="-")
    except RequestRejected as rejection:
        assert rejection.code is Code.TOO_LARGE  # noqa: PT017 - either outcome is right
        encoded = len(msgspec.json.encode(text))
        assert encoded + 200 > MAX_MESSAGE_BYTES
        return
    longest = msgspec.structs.replace(broadcast, offset=LARGEST_OFFSET)
    assert len(bytes(Message.from_broadcast(longest).encode())) <= MAX_MESSAGE_BYTES
    assert len(broadcast_frame(longest)) <= MAX_FRAME_BYTES
    assert decode(encode(broadcast)) == broadcast


def test_the_longest_payload_that_fits_is_exact() -> None:
    def message(length: int) -> int:
        broadcast = to_broadcast(PublishRequest("lobby", data="x" * length, id="1"), CALLER, generated_id="-")
        longest = msgspec.structs.replace(broadcast, offset=LARGEST_OFFSET)
        return len(bytes(Message.from_broadcast(longest).encode()))

    longest = MAX_MESSAGE_BYTES - message(1) + 1
    assert message(longest) == MAX_MESSAGE_BYTES
    with pytest.raises(RequestRejected, match=r"^data: 1 bytes too long") as rejection:
        message(longest + 1)
    assert rejection.value.code is Code.TOO_LARGE
