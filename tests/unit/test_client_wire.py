"""What the server sends, as values, and requests as text."""

from typing import Any

import msgspec
import pytest

from gatecast.client import wire
from gatecast.client.errors import RequestFailed
from gatecast.client.events import Message, Presence, Reference
from gatecast.client.options import Options
from gatecast.client.presence import PresenceChanges
from gatecast.client.sequence import Ask, Page
from gatecast.frames import Link, closed, messages, presence
from gatecast.frames import Message as MessageOnWire

BIG = 123456789012345678901234567890


def test_the_frames_of_this_version_are_read() -> None:
    raw = msgspec.Raw(b'{"b": 1, "a":  12345678901234567890}')
    encoded = MessageOnWire(id="i", from_="alice", offset=7, published_at_ms=5, json=raw).encode()
    frame = wire.parse(messages("lobby", [encoded], [(8, 9)]))
    assert isinstance(frame, wire.Messages)
    assert (frame.room, frame.skipped) == ("lobby", ((8, 9),))
    [message] = [wire.to_message(each, frame.room) for each in frame.messages]
    assert message == Message(id="i", room="lobby", offset=7, from_="alice", published_at_ms=5, raw=bytes(raw))
    assert message.json == {"b": 1, "a": 12345678901234567890}
    assert wire.parse(presence("lobby", joined=["a"], at_ms=3)) == wire.PresenceFrame("lobby", 3, ("a",))
    assert wire.parse(closed("token_expired", retry=True)) == wire.ClosedFrame("token_expired", True)


def test_a_reference_has_what_is_needed_to_fetch_it() -> None:
    link: dict[str, Any] = {"url": "https://a/b?c=d", "bytes": 9**6, "content_type": "image/png", "expires_at_ms": 9}
    encoded = MessageOnWire(id="i", offset=7, published_at_ms=5, reference=Link(**link)).encode()
    frame = wire.parse(messages("lobby", [encoded]))
    assert isinstance(frame, wire.Messages)
    message = wire.to_message(frame.messages[0], frame.room)
    assert message == Message(id="i", room="lobby", offset=7, published_at_ms=5, reference=Reference(**link))
    with pytest.raises(ValueError, match="neither"):
        _ = message.json


def test_a_message_without_room_offset_or_author_has_none() -> None:
    frame = wire.parse(b'{"type":"messages","messages":[{"id":"i","published_at_ms":5,"data":"x"}]}')
    assert isinstance(frame, wire.Messages)
    message = wire.to_message(frame.messages[0], frame.room)
    assert (message.room, message.offset, message.from_, message.data, message.raw) == (None, None, None, "x", None)


@pytest.mark.parametrize(
    ("fields", "value"),
    [({"raw": str(BIG).encode()}, BIG), ({"data": "[1]"}, [1]), ({"raw": b'{"a":1,"a":2}'}, {"a": 2})],
)
def test_json_is_parsed_exactly_when_it_is_read(fields: dict[str, str | bytes], value: object) -> None:
    message = msgspec.convert({"id": "i", "room": "r", "published_at_ms": 1}, Message)
    assert msgspec.structs.replace(message, **fields).json == value


def test_a_number_with_more_digits_than_python_parses_is_passed_on_as_its_text() -> None:
    number = "7" * 5_000
    on_wire = f'{{"id":"i","published_at_ms":5,"json":{{"a":{number}}}}}'
    frame = wire.parse(f'{{"type":"messages","room":"r","messages":[{on_wire}],"unknown":{number}}}')
    response = wire.parse(f'{{"type":"ok","ref":1,"offset":9,"messages":[{on_wire}]}}')
    assert isinstance(frame, wire.Messages)
    assert isinstance(response, wire.Ok)
    for each in (*frame.messages, *response.messages):
        message = wire.to_message(each, "r")
        assert message.raw == f'{{"a":{number}}}'.encode()
        with pytest.raises(ValueError, match="4300 digits"):
            _ = message.json
    assert bytes(wire.json_value(msgspec.Raw(number.encode()))) == number.encode()
    with pytest.raises(RequestFailed, match=r"bad_request.*4300 digits"):
        wire.json_value(10**5_000)


@pytest.mark.parametrize("data", ["not JSON", None])
def test_what_is_no_json_is_an_error(data: str | None) -> None:
    with pytest.raises(ValueError, match=r"."):
        _ = Message(id="i", room="r", published_at_ms=1, data=data).json


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "[]",
        "7",
        "null",
        '{"type":7}',
        '{"type":"messages","messages":7}',
        '{"type":"closed"}',
        f'{{"type":"ok","offset":{"7" * 5_000}}}',
        f'{{"type":"ok","after":{"7" * 5_000}}}',
        "[" * 5_000,
        "{}",
    ],
)
def test_malformed_frames_are_found(text: str) -> None:
    with pytest.raises(wire.NotAFrame):
        wire.parse(text)


def test_frames_of_a_later_version_are_no_error() -> None:
    assert wire.parse('{"type":"receipt","messages":7}') is None
    assert wire.parse('{"type":"pong","ref":"x","more":1}') == wire.Pong("x")


def test_an_error_keeps_all_its_fields() -> None:
    text = '{"type":"error","action":"join","code":"rate_limited","message":"slow","retry_after_seconds":3,"ref":7}'
    frame = wire.parse(text)
    assert isinstance(frame, wire.Error)
    failed = frame.to_exception()
    assert (failed.code, failed.message, failed.retry_after_seconds, frame.ref) == ("rate_limited", "slow", 3, 7)
    assert str(failed) == "rate_limited: slow"


def test_the_response_of_a_room_with_history_is_a_page() -> None:
    text = '{"type":"ok","room":"r","offset":9,"recovered":false,"messages":[],"more":true,"skipped":[[8,9]],"ref":1}'
    ok = wire.parse(text)
    assert isinstance(ok, wire.Ok)
    page = ok.page("r")
    assert page == Page(offset=9, recovered=False, messages=[], skipped=((8, 9),), more=True)
    assert page.run_begins == 8
    assert wire.Ok().page("r") is None


def test_requests_are_encoded_with_their_ref() -> None:
    assert wire.encode({"action": "ping"}, 3) == '{"action":"ping","ref":3}'
    assert wire.encode({"json": msgspec.Raw(b'{"a":  1}')}, 3) == '{"json":{"a":  1},"ref":3}'


@pytest.mark.parametrize(
    ("value", "code"), [(object(), "bad_request"), ("\ud800", "bad_request"), ("x" * 131_072, "too_large")]
)
def test_what_the_server_cannot_accept_is_rejected_at_once(value: object, code: str) -> None:
    with pytest.raises(RequestFailed) as failed:
        wire.encode({"action": "publish", "json": value}, 1)
    assert failed.value.code == code


def test_joins_of_one_room_and_of_several() -> None:
    assert wire.join([("a", Ask(since=0))]) == {"action": "join", "frames": 2, "room": "a", "since": 0}
    rooms = [{"room": "a"}, {"room": "b", "last": 3}, {"room": "c", "since": 7}]
    joined = wire.join([("a", Ask(restart=True)), ("b", Ask(last=3)), ("c", Ask(since=7))])
    assert joined == {"action": "join", "frames": 2, "rooms": rooms}


def test_of_presence_events_the_latest_of_each_user_counts() -> None:
    changes = PresenceChanges("r", max_users=2)
    assert changes.receive(["a", "b"], [], 10) == Presence(room="r", joined=("a", "b"), at_ms=10)
    assert changes.receive(["a"], [], 10) is None
    assert changes.receive([], ["a"], 9) is None
    assert changes.receive([], ["a"], 10) is None, "at the same time the user is present"
    assert changes.receive([], ["a", "b"], 11) == Presence(room="r", departed=("a", "b"), at_ms=11)
    assert changes.receive(["c"], [], 1) == Presence(room="r", joined=("c",), at_ms=1)
    assert changes.receive(["a"], [], 1) == Presence(room="r", joined=("a",), at_ms=1), "the oldest was forgotten"


def test_times_are_spread_within_their_bounds() -> None:
    options = Options(gap_seconds=8, ping_seconds=100, backoff_seconds=1, max_backoff_seconds=30)
    assert (options.gap_delay(0), options.gap_delay(1)) == (8, 10)
    assert (options.ping_delay(0), options.ping_delay(1)) == (100, 80)
    assert [options.backoff(failures, 1) for failures in (0, 1, 4, 5, 10_000)] == [1, 2, 16, 30, 30]
    assert options.backoff(3, 0) == 0
    assert options.renewal_delay(1_000, 0) == 700
    assert options.renewal_delay(10**9, 0) == pytest.approx(5_040)
    assert options.renewal_delay(-5, 1) == pytest.approx(0.9 * options.min_lifetime_seconds)


@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_options_are_positive(value: float) -> None:
    with pytest.raises(ValueError, match="gap_seconds: must be more than 0"):
        Options(gap_seconds=value)
