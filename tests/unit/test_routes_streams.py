"""Reading heads and entries: what is created, retried, damaged or too long."""

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest

from gatecast import table
from gatecast.frames import MAX_FRAME_BYTES
from gatecast.rooms.backoff import Backoff
from routes.responses import MAX_MESSAGE_BYTES, Code, RequestRejected
from routes.streams import Streams
from tests.routes_events import captured_log
from tests.stream_table import StreamTable, client_error

NOW = 1_700_000_000.5
NOW_MS = 1_700_000_000_500


@pytest.fixture
def stream() -> StreamTable:
    return StreamTable(NOW)


@pytest.fixture
def subject(stream: StreamTable) -> Streams:
    return Streams(stream, "gatecast", Backoff(sleep=lambda _: None), stream.clock)


@pytest.fixture(autouse=True)
def log() -> Iterator[io.StringIO]:
    with captured_log() as log:
        yield log


def offsets(page: Any) -> list[int]:
    return list(page.entries)


def test_one_head_costs_one_get_and_several_cost_one_batch(stream: StreamTable, subject: Streams) -> None:
    heads = {room: stream.append(room) for room in ("a", "b", "c")}
    assert subject.heads(["a"]) == {"a": heads["a"]}
    assert stream.calls == ["GetItem"]
    assert subject.heads(["a", "b", "c"]) == heads
    assert stream.calls == ["GetItem", "BatchGetItem"]


def test_unprocessed_heads_are_read_again(stream: StreamTable, subject: Streams) -> None:
    heads = {room: stream.append(room) for room in ("a", "b", "c")}
    stream.unprocessed = 2
    assert subject.heads(["a", "b", "c"]) == heads
    assert stream.calls == ["BatchGetItem"] * 3
    stream.unprocessed = 100
    with pytest.raises(RequestRejected) as rejection:
        subject.heads([f"room-{number}" for number in range(25)])
    assert rejection.value.code is Code.UNAVAILABLE


def test_a_room_without_a_head_gets_the_clock(stream: StreamTable, subject: Streams) -> None:
    assert subject.heads(["a"]) == {"a": NOW_MS}
    assert stream.head("a") == NOW_MS
    stream.now += 60
    assert subject.heads(["a", "b"]) == {"a": NOW_MS, "b": NOW_MS + 60_000}
    assert stream.append("a") == NOW_MS + 1


@pytest.mark.parametrize("damaged", [None, {"N": "7"}])
def test_of_two_that_write_the_head_both_return_the_same(
    damaged: dict[str, str] | None, stream: StreamTable, subject: Streams
) -> None:
    if damaged:
        stream.set_head("a", {"S": "seven"})
    stream.on_call = lambda call: stream.set_head("a", {"N": "41"}) if call == "PutItem" else None
    assert subject.heads(["a"]) == {"a": 41}
    assert stream.calls == ["GetItem", "PutItem", "GetItem"]


@pytest.mark.parametrize("offset", [{"S": "seven"}, {"N": "-1"}, {"BOOL": True}, {"L": []}])
def test_a_damaged_head_is_replaced_by_the_clock_and_logged(
    offset: dict[str, Any], stream: StreamTable, subject: Streams, log: io.StringIO
) -> None:
    stream.set_head("secret-room", offset)
    assert subject.heads(["secret-room"]) == {"secret-room": NOW_MS}
    assert stream.head("secret-room") == NOW_MS
    assert json.loads(log.getvalue())["message"] == "stream.damaged"
    assert "secret-room" not in log.getvalue()


def test_a_conflict_with_a_worker_is_retried_and_other_errors_pass(stream: StreamTable, subject: Streams) -> None:
    failures = [client_error("TransactionConflictException", "PutItem")] * 2

    def fail(call: str) -> None:
        if call == "PutItem" and failures:
            raise failures.pop()

    stream.on_call = fail
    assert subject.heads(["a"]) == {"a": NOW_MS}
    failures[:] = [client_error("TransactionConflictException", "PutItem")] * 100
    with pytest.raises(RequestRejected, match="busy"):
        subject.heads(["b"])
    failures[:] = [client_error("AccessDeniedException", "PutItem")]
    with pytest.raises(type(failures[0])):
        subject.heads(["c"])


def test_pages_are_read_in_either_direction(stream: StreamTable, subject: Streams) -> None:
    numbers = [stream.append("a", f"{number}") for number in range(10)]
    first, last = numbers[0], numbers[-1]
    page = subject.read("a", first + 2, last, 3)
    assert (offsets(page), page.is_complete) == (numbers[2:5], False)
    page = subject.read("a", last, first, 3)
    assert (offsets(page), page.is_complete) == (numbers[:-4:-1], False)
    page = subject.read("a", last - 1, last, 100)
    assert (offsets(page), page.is_complete) == (numbers[-2:], True)


def test_an_entry_is_the_message_as_responses_contain_it(stream: StreamTable, subject: Streams) -> None:
    number = b'{"b":1e400, "a": 9007199254740993, "a":1}'
    offset = stream.append("a", json=number, from_="alice", expires_at_ms=NOW_MS + 5)
    entry = subject.entry("a", offset)
    assert entry
    assert entry.encoded == (
        b'{"id":"id-%d","from":"alice","offset":%d,"published_at_ms":%d,"json":%b}' % (offset, offset, NOW_MS, number)
    )
    assert (entry.expires_at, entry.message_expires_at_ms) == (int(NOW + 3600), NOW_MS + 5)
    assert subject.entry("a", offset + 1) is None


def test_an_entry_that_cannot_be_read_is_there_without_a_message(
    stream: StreamTable, subject: Streams, log: io.StringIO
) -> None:
    offset = stream.append("a", "the-payload")
    item = stream.entry("a", offset)
    assert item
    del item["id"]
    assert subject.read("a", offset, offset, 1).entries[offset].encoded is None
    entry = subject.entry("a", offset)
    assert entry
    assert entry.encoded is None
    assert "the-payload" not in log.getvalue()


def test_a_message_that_fits_into_no_response_has_no_encoding(stream: StreamTable, subject: Streams) -> None:
    offset = stream.append("a", "x")
    entry = subject.entry("a", offset)
    assert entry
    assert entry.encoded
    others = len(entry.encoded) - 1
    for length, fits in ((MAX_MESSAGE_BYTES - others, True), (MAX_MESSAGE_BYTES - others + 1, False)):
        found = subject.entry("a", stream.append("a", "x" * length))
        assert found
        assert bool(found.encoded) is fits
    assert MAX_MESSAGE_BYTES < MAX_FRAME_BYTES


def test_keys_are_those_of_the_table(stream: StreamTable, subject: Streams) -> None:
    subject.heads(["a"])
    assert list(stream.items) == [(table.stream_pk("a"), table.HEAD_SK)]
