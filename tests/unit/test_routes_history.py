"""What a client that resumes receives, and what it costs: calls are counted."""

from bisect import bisect
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from gatecast import Broadcast, table
from gatecast.entries import entry_item
from gatecast.frames import MAX_FRAME_BYTES, Message
from gatecast.rooms.backoff import Backoff
from routes.entry_cache import EntryCache
from routes.history import History, Recovery
from routes.joins import Position
from routes.publishing import PublishRequest, to_broadcast
from routes.requests import MAX_REF_LENGTH, Caller
from routes.responses import MAX_MESSAGE_BYTES, Code, RequestRejected, ok
from routes.runs import MAX_RESPONSE_BYTES
from routes.streams import Streams
from tests.routes_events import captured_log
from tests.stream_table import StreamTable

NOW = 1_700_000_000.0
NOTHING = Position()


@pytest.fixture
def stream() -> StreamTable:
    return StreamTable(NOW)


@pytest.fixture
def subject(stream: StreamTable) -> History:
    return history(stream)


@pytest.fixture(autouse=True)
def _log() -> Iterator[None]:
    with captured_log():
        yield


def history(stream: StreamTable, cache: EntryCache | None = None) -> History:
    return History(Streams(stream, "gatecast", Backoff(sleep=lambda _: None), stream.clock), cache, stream.clock)


def resumed(subject: History, since: int | None = None, last: int | None = None, room: str = "a") -> Recovery:
    given = {name: value for name, value in (("since", since), ("last", last)) if value is not None}
    return subject.resume({room: Position(**given)}, 1)[room]


def offsets(recovery: Recovery) -> list[int]:
    return [msgspec.json.decode(message)["offset"] for message in recovery.messages]


def appended(stream: StreamTable, count: int, room: str = "a", **fields: Any) -> list[int]:
    return [stream.append(room, **fields) for _ in range(count)]


# Results


def test_without_a_position_the_head_is_returned(stream: StreamTable, subject: History) -> None:
    head = appended(stream, 5)[-1]
    assert resumed(subject) == Recovery(head, recovered=True)
    assert resumed(subject, last=0) == Recovery(head, recovered=True)


def test_a_client_at_the_head_missed_nothing(stream: StreamTable, subject: History) -> None:
    head = appended(stream, 5)[-1]
    assert resumed(subject, head) == Recovery(head, recovered=True)


def test_a_client_that_missed_messages_receives_them_in_order(stream: StreamTable, subject: History) -> None:
    first, *missed = appended(stream, 5)
    recovery = resumed(subject, first)
    assert (recovery.offset, recovery.recovered, recovery.more) == (missed[-1], True, False)
    assert offsets(recovery) == missed


@pytest.mark.parametrize("removed", [0, 1, 2, 3])
def test_a_message_that_is_gone_is_never_hidden(removed: int, stream: StreamTable, subject: History) -> None:
    first, *missed = appended(stream, 5)
    stream.delete("a", missed[removed])
    recovery = resumed(subject, first)
    assert (recovery.offset, recovery.recovered, recovery.more) == (missed[-1], False, False)
    assert offsets(recovery) == missed[removed + 1 :]


def test_an_expired_entry_counts_as_gone_although_it_is_still_there(stream: StreamTable, subject: History) -> None:
    first, *_ = appended(stream, 3, seconds=60)
    later = appended(stream, 2, seconds=7_200)
    stream.now += 61
    recovery = resumed(subject, first)
    assert (recovery.offset, recovery.recovered) == (later[-1], False)
    assert offsets(recovery) == later
    stream.now += 7_200
    assert resumed(subject, first) == Recovery(later[-1], recovered=False)
    assert resumed(subject, later[-1]) == Recovery(later[-1], recovered=True), "it missed nothing"


def test_a_message_that_expired_by_itself_is_skipped(stream: StreamTable, subject: History) -> None:
    (since,) = appended(stream, 1)
    expiring: dict[str, Any] = {"expires_at_ms": int(NOW * 1000) + 5_000}
    one = appended(stream, 2, **expiring)
    (kept,) = appended(stream, 1)
    other = appended(stream, 1, **expiring)
    assert len(resumed(subject, since).messages) == 4
    stream.now += 5
    recovery = resumed(subject, since)
    assert (recovery.offset, recovery.recovered, offsets(recovery)) == (other[0], True, [kept])
    assert recovery.skipped == ((one[0], one[1]), (other[0], other[0]))
    assert recovery.fields()["skipped"] == recovery.skipped
    assert "skipped" not in resumed(subject, other[0]).fields()
    assert resumed(subject, last=100).skipped == recovery.skipped


@pytest.mark.parametrize(("field", "value"), [("data", "7"), ("published_at_ms", str(2**53 + 1))])
def test_an_unreadable_entry_counts_as_missing(field: str, value: str, stream: StreamTable, subject: History) -> None:
    """So does one with a number that is not exact in JavaScript."""
    first, second, third = appended(stream, 3)
    item = stream.entry("a", second)
    assert item
    item[field] = {"N": value}
    recovery = resumed(subject, first)
    assert (recovery.recovered, offsets(recovery)) == (False, [third])
    assert resumed(subject, second).recovered


def test_the_last_messages(stream: StreamTable, subject: History) -> None:
    sent = appended(stream, 7)
    recovery = resumed(subject, last=3)
    assert (recovery.offset, recovery.recovered, recovery.more) == (sent[-1], True, False)
    assert offsets(recovery) == sent[-3:]
    assert offsets(resumed(subject, last=100)) == sent
    stream.delete("a", sent[3])
    assert offsets(resumed(history(stream), last=100)) == sent[4:]


def test_skipped_messages_are_not_counted_among_the_last(stream: StreamTable, subject: History) -> None:
    kept = appended(stream, 2)
    skipped = appended(stream, 100, expires_at_ms=int(NOW * 1000) + 1)
    stream.now += 1
    recovery = resumed(subject, last=2)
    assert (offsets(recovery), recovery.offset) == (kept, skipped[-1])
    assert recovery.skipped == ((skipped[0], skipped[-1]),)
    assert stream.calls.count("Query") == 2, "two messages are read, and because they are skipped, many more"


def read_on(subject: History, recovery: Recovery, room: str = "a") -> list[int]:
    """The offsets of a response's messages, and of all that follow as long as `more` is true."""
    read = offsets(recovery)
    while recovery.more:
        recovery = subject.read(room, recovery.offset, 1_000)
        assert recovery.recovered
        read += offsets(recovery)
    return read


def test_the_last_messages_are_read_on_if_they_do_not_fit(stream: StreamTable, subject: History) -> None:
    sent = appended(stream, 60, data="x" * 7_000)
    recovery = resumed(subject, last=30)
    assert (recovery.offset, recovery.recovered, recovery.more) == (sent[42], True, True)
    assert offsets(recovery) == sent[30:43], "the first of them"
    assert read_on(subject, recovery) == sent[30:]
    assert read_on(subject, resumed(subject, last=100)) == sent, "there are no more"


def test_the_last_messages_begin_behind_what_has_expired_or_is_gone(stream: StreamTable, subject: History) -> None:
    expired = appended(stream, 30, data="x" * 9_000, seconds=60)
    kept = appended(stream, 20, data="x" * 9_000)
    stream.now += 61
    for offset in expired[:7]:
        stream.delete("a", offset)
    assert read_on(subject, resumed(subject, last=40)) == kept


def test_a_gap_among_the_last_messages_is_reported_where_it_is(stream: StreamTable) -> None:
    sent = appended(stream, 40, data="x" * 9_000)
    stream.delete("a", sent[25])
    subject = history(stream)
    recovery = resumed(subject, last=30)
    assert (offsets(recovery), recovery.more) == (sent[10:20], True)
    following = subject.read("a", recovery.offset, 1_000)
    assert (following.recovered, offsets(following)) == (False, sent[30:])
    stream.delete("a", sent[12])
    behind = resumed(history(stream), last=30)
    assert behind == Recovery(sent[12], recovered=True, more=True), "before anything is sent: it counts from there"


def test_rooms_without_space_left_do_not_look_empty(stream: StreamTable, subject: History) -> None:
    sent = {f"room-{number}": appended(stream, number, f"room-{number}", data="x" * 30_000) for number in range(25)}
    found = subject.resume({room: Position(last=10) for room in sent}, 25)
    assert found["room-0"].more is False
    assert found["room-9"] == Recovery(sent["room-9"][0] - 1, recovered=True, more=True)
    assert found["room-24"] == Recovery(sent["room-24"][14] - 1, recovered=True, more=True)
    for room, recovery in found.items():
        assert read_on(subject, recovery, room) == sent[room][-10:]


def test_history_is_limited_and_can_be_read_on(stream: StreamTable, subject: History) -> None:
    first, *others = appended(stream, 26)
    read: list[int] = []
    position = first
    for _ in range(3):
        recovery = subject.read("a", position, 10)
        assert recovery.recovered
        read += offsets(recovery)
        position = recovery.offset
    assert read == others
    assert not recovery.more
    assert len(recovery.messages) == 5


def test_a_page_that_precedes_a_gap_is_not_called_recovered(stream: StreamTable, subject: History) -> None:
    first, *others = appended(stream, 8)
    stream.delete("a", others[3])
    recovery = subject.read("a", first, 3)
    assert (recovery.recovered, offsets(recovery)) == (False, others[-3:])


# Bad positions


def test_a_position_beyond_the_head_is_rejected_before_anything_is_written(
    stream: StreamTable, subject: History
) -> None:
    head = appended(stream, 1)[-1]
    positions = {"a": Position(since=head + 1), "b": Position(last=3), "c": NOTHING}
    rejected = subject.check(positions)
    assert {room: each.code for room, each in rejected.items()} == {"a": Code.BAD_REQUEST}
    assert rejected["a"].message == "since: beyond the room's latest message"
    assert subject.check({"a": Position(since=head)}) == {}
    with pytest.raises(RequestRejected, match=r"^since: beyond") as rejection:
        subject.read("a", head + 1, 10)
    assert rejection.value.code is Code.BAD_REQUEST


def test_a_room_without_a_head_has_no_position_but_the_clock(stream: StreamTable, subject: History) -> None:
    now_ms = int(NOW * 1000)
    assert list(subject.check({"a": Position(since=now_ms + 1)})) == ["a"]
    assert stream.head("a") is None, "a join that is rejected writes nothing"
    assert resumed(subject, room="b") == Recovery(now_ms, recovered=True)
    assert stream.append("b") == now_ms + 1
    assert offsets(resumed(subject, now_ms, room="b")) == [now_ms + 1]


def test_a_position_before_the_first_message_is_not_recovered(stream: StreamTable, subject: History) -> None:
    sent = appended(stream, 3)
    recovery = resumed(subject, 0)
    assert (recovery.recovered, offsets(recovery)) == (False, sent)
    assert resumed(subject, sent[0] - 1).recovered


def test_a_head_that_was_set_back_is_no_proof_of_anything(stream: StreamTable, subject: History) -> None:
    sent = appended(stream, 3)
    assert subject.check({"a": Position(since=sent[-1])}) == {}
    stream.set_head("a", {"N": str(sent[0])})
    assert resumed(subject, sent[-1]).recovered is False


# Sizes


def test_a_response_stays_below_its_limit_and_the_rest_can_be_read(stream: StreamTable, subject: History) -> None:
    since = appended(stream, 1)[-1]
    sent = [stream.append("a", "x" * 7_000) for _ in range(40)]
    read: list[int] = []
    recovery = resumed(subject, since)
    while True:
        assert sum(len(bytes(each)) for each in recovery.messages) < MAX_RESPONSE_BYTES
        assert recovery.recovered
        read += offsets(recovery)
        if not recovery.more:
            break
        recovery = subject.read("a", recovery.offset, 1_000)
    assert read == sent


def test_a_message_above_the_limit_goes_alone(stream: StreamTable, subject: History) -> None:
    since = appended(stream, 1)[-1]
    small, large = stream.append("a", "x"), stream.append("a", "x" * 120_000)
    after = stream.append("a", "x")
    pages = [resumed(subject, since)]
    while pages[-1].more:
        pages.append(subject.read("a", pages[-1].offset, 1_000))
    assert [offsets(page) for page in pages] == [[small], [large], [after]]
    assert len(bytes(pages[1].messages[0])) < MAX_MESSAGE_BYTES


def longest_published(kind: str) -> Broadcast:
    """The longest message that `publish` accepts, with the longest id and the longest name of its user."""
    publisher = Caller(connection_id="a=", connected_at_ms=0, requested_at_ms=int(NOW * 1000), user='"' * 94)

    def published(length: int) -> Broadcast | None:
        text = "x" * length
        payload: dict[str, Any] = {"data": text} if kind == "data" else {"json": msgspec.Raw(f'"{text}"'.encode())}
        request = PublishRequest("a", id='"' * 51, **payload)
        try:
            return to_broadcast(request, publisher, generated_id="-")
        except RequestRejected as rejection:
            assert rejection.code is Code.TOO_LARGE  # noqa: PT017 - either outcome is right
            return None

    longest = published(bisect(range(131_073), False, key=lambda length: published(length or 1) is None) - 1)
    assert longest
    assert len(longest.id) == 100
    return longest


@pytest.mark.parametrize("kind", ["data", "json"])
def test_the_longest_message_that_is_accepted_can_be_read_again(
    kind: str, stream: StreamTable, subject: History
) -> None:
    """Also if it is left out of the response to a join of several rooms."""
    since, offset = table.MAX_HEAD - 1, table.MAX_HEAD
    message = Message.from_broadcast(msgspec.structs.replace(longest_published(kind), offset=offset))
    item: Any = entry_item("a", message, expires_at=int(NOW + 60))
    stream.items[table.stream_pk("a"), table.entry_sk(offset)] = item
    stream.set_head("a", {"N": str(offset)})
    assert len(bytes(message.encode())) == MAX_MESSAGE_BYTES
    everything = Recovery(offset, recovered=True, messages=(message.encode(),))
    assert subject.read("a", since, 1_000) == everything
    assert resumed(subject, since) == everything
    longest = {"room": '"' * 100, **everything.fields(), "connection": "c" * 128, "expires_at_ms": 2**53}
    assert len(ok("history", longest, "\x00" * MAX_REF_LENGTH)["body"].encode()) <= MAX_FRAME_BYTES
    others = {f"r{number}": NOTHING for number in range(24)}
    assert subject.resume({**others, "a": Position(since=since)}, 25)["a"] == Recovery(since, recovered=True, more=True)
    behind_a_gap = subject.resume({**others, "a": Position(since=since - 1)}, 25)["a"]
    assert behind_a_gap == Recovery(since - 1, recovered=False, more=True)
    assert subject.read("a", since - 1, 1_000) == everything._replace(recovered=False)


def test_a_message_that_can_never_be_sent_counts_as_missing(stream: StreamTable, subject: History) -> None:
    first = appended(stream, 1)[0]
    stream.append("a", "\x00" * MAX_FRAME_BYTES)
    after = stream.append("a", "x")
    recovery = resumed(subject, first)
    assert (recovery.recovered, offsets(recovery)) == (False, [after])


def test_rooms_of_one_response_share_the_space(stream: StreamTable, subject: History) -> None:
    rooms = [f"room-{number}" for number in range(25)]
    since = {room: stream.append(room) for room in rooms}
    sent = {room: [stream.append(room, "x" * 5_000) for _ in range(3)] for room in rooms}
    found = subject.resume({room: Position(since=since[room]) for room in rooms}, 25)
    body = msgspec.json.encode([{"room": room, **each.fields()} for room, each in found.items()])
    assert len(body) < MAX_RESPONSE_BYTES
    assert not found["room-0"].more
    for room, recovery in found.items():
        read = offsets(recovery)
        assert recovery.recovered
        while recovery.more:
            recovery = subject.read(room, recovery.offset, 1_000)  # noqa: PLW2901 - the next page
            read += offsets(recovery)
        assert read == sent[room]


def test_a_room_with_a_gap_and_no_space_left_is_read_on(stream: StreamTable, subject: History) -> None:
    first = stream.append("full", "x")
    for _ in range(20):
        stream.append("full", "x" * 5_000)
    since, lost, kept = appended(stream, 3, "gap", data="x" * 6_000)
    stream.delete("gap", lost)
    found = subject.resume({"full": Position(since=first), "gap": Position(since=since)}, 2)
    assert found["full"].more
    assert found["gap"] == Recovery(since, recovered=False, more=True)
    recovery = subject.read("gap", since, 1_000)
    assert (recovery.recovered, recovery.more, offsets(recovery)) == (False, False, [kept])


def test_a_run_that_is_not_sent_uses_no_space(stream: StreamTable, subject: History) -> None:
    since = stream.append("a")
    lost = [stream.append("a", "x" * 5_000) for _ in range(10)][-1]
    kept = [stream.append("a", "x" * 5_000) for _ in range(15)]
    stream.delete("a", lost)
    assert offsets(resumed(subject, since)) == kept


# Concurrent appends


def test_an_entry_that_a_query_has_passed_is_read_before_it_counts_as_missing(
    stream: StreamTable, subject: History
) -> None:
    first, *missed = appended(stream, 5)
    stream.hides = lambda offset: offset == missed[1]
    assert offsets(resumed(subject, first)) == missed
    assert offsets(resumed(history(stream), last=5)) == [first, *missed]


def test_what_is_appended_after_the_head_was_read_is_left_to_the_worker(stream: StreamTable, subject: History) -> None:
    first, second = appended(stream, 2)
    stream.on_call = lambda call: stream.append("a") if call == "Query" else None
    recovery = resumed(subject, first)
    assert (recovery.offset, recovery.recovered, recovery.more) == (second, True, False)
    assert offsets(recovery) == [second]


def test_an_entry_that_is_removed_between_pages_is_not_hidden(stream: StreamTable, subject: History) -> None:
    first, *missed = appended(stream, 400)
    seen: list[str] = []

    def remove(call: str) -> None:
        seen.append(call)
        if seen.count("Query") == 2:
            stream.delete("a", missed[-2])

    stream.on_call = remove
    recovery = resumed(subject, first)
    assert (recovery.recovered, recovery.offset) == (False, missed[-1])
    assert offsets(recovery) == missed[-1:]


# Costs


def cost(stream: StreamTable) -> list[str]:
    calls = list(stream.calls)
    stream.calls.clear()
    return calls


def test_a_join_without_a_position_reads_one_head(stream: StreamTable, subject: History) -> None:
    appended(stream, 3)
    assert subject.check({"a": NOTHING}) == {}
    resumed(subject)
    assert cost(stream) == ["GetItem"]


def test_a_resume_reads_the_head_before_and_after_the_membership_and_then_the_messages(
    stream: StreamTable, subject: History
) -> None:
    first, *_ = appended(stream, 100)
    assert subject.check({"a": Position(since=first)}) == {}
    assert cost(stream) == ["GetItem"]
    assert len(resumed(subject, first).messages) == 99
    assert cost(stream) == ["GetItem", "Query"]


def test_after_a_mass_cut_a_resume_reads_one_head(stream: StreamTable, subject: History) -> None:
    first, *missed = appended(stream, 100)
    resumed(subject, first)
    cost(stream)
    for since in (first, *missed[:-1]):
        assert subject.check({"a": Position(since=since)}) == {}
        assert offsets(resumed(subject, since)) == missed[missed.index(since) + 1 if since in missed else 0 :]
        assert cost(stream) == ["GetItem"]
    tail = appended(stream, 3)
    assert offsets(resumed(subject, first)) == missed + tail
    assert cost(stream) == ["GetItem", "Query"]
    assert offsets(subject.read("a", first, 1_000)) == missed + tail
    assert offsets(resumed(subject, last=50)) == (missed + tail)[-50:]
    assert cost(stream) == ["GetItem", "GetItem"]


def test_read_units_are_those_of_the_bytes_that_are_read(stream: StreamTable, subject: History) -> None:
    def cost_of(run: Any, *arguments: Any) -> int:
        stream.read_units = 0
        run(*arguments)
        return stream.read_units

    first, *_ = [stream.append("a", "x" * 900) for _ in range(41)]  # about 1 KB each
    position = {"a": Position(since=first)}
    assert cost_of(subject.resume, {"a": NOTHING}, 1) == 1
    assert cost_of(history(stream).check, position) == 1
    assert cost_of(subject.check, position) == 0, "the head was remembered"
    assert 10 <= cost_of(subject.resume, position, 1) <= 12, "40 KB, and the head"
    assert cost_of(subject.resume, position, 1) == 1
    assert cost_of(subject.read, "a", first, 1_000) == 1
    stream.append("a")
    assert cost_of(subject.resume, position, 1) == 2


def test_only_the_tail_is_queried(stream: StreamTable, subject: History) -> None:
    first, *_ = appended(stream, 50)
    resumed(subject, first)
    tail = appended(stream, 1)
    queries: list[Any] = []
    query = stream.query

    def recorded(**call: Any) -> Any:
        queries.append(call["ExpressionAttributeValues"][":low"]["S"])
        return query(**call)

    stream.query = recorded  # type: ignore[method-assign]
    resumed(subject, first)
    assert queries == [f"m#{tail[0]:016d}"]


def test_several_rooms_read_their_heads_with_one_call(stream: StreamTable, subject: History) -> None:
    since = {f"room-{number}": appended(stream, 3, f"room-{number}")[0] for number in range(25)}
    positions = {room: Position(since=offset) for room, offset in since.items()}
    assert subject.check(positions) == {}
    assert cost(stream) == ["BatchGetItem"]
    assert all(each.recovered for each in subject.resume(positions, 25).values())
    assert cost(stream) == ["BatchGetItem", *["Query"] * 25]
    assert subject.check(positions) == {}
    assert all(len(each.messages) == 2 for each in subject.resume(positions, 25).values())
    assert cost(stream) == ["BatchGetItem"]


def test_a_position_before_the_history_costs_two_queries_and_two_looks(stream: StreamTable, subject: History) -> None:
    sent = appended(stream, 100)
    for offset in sent[:50]:
        stream.delete("a", offset)
    assert offsets(resumed(subject, sent[0])) == sent[50:]
    assert cost(stream) == ["GetItem", "Query", "GetItem", "Query", "GetItem"]


def test_skipped_messages_cost_a_bounded_number_of_queries(stream: StreamTable, subject: History) -> None:
    since = appended(stream, 1)[0]
    sent = [stream.append("a", "x" * 90_000, expires_at_ms=int(NOW * 1000) + 1) for _ in range(300)]
    stream.now += 1
    recovery = resumed(subject, since)
    assert recovery.recovered
    assert recovery.more
    assert cost(stream).count("Query") == 11
    while recovery.more:
        recovery = subject.read("a", recovery.offset, 1_000)
        assert recovery.recovered
    assert recovery.offset == sent[-1]


def test_the_last_messages_cost_what_is_sent(stream: StreamTable, subject: History) -> None:
    """Of a room with few messages, of one with many short ones, and of one with many long ones."""
    few = appended(stream, 5)
    assert offsets(resumed(subject, last=100)) == few
    assert cost(stream) == ["GetItem", "Query", "Query", "GetItem"], (
        "the head, the messages, and that there are no more"
    )
    many = appended(stream, 400, "many")
    stream.read_units = 0
    assert offsets(resumed(subject, last=100, room="many")) == many[-100:]
    assert cost(stream) == ["GetItem", "Query"]
    assert stream.read_units <= 6, "100 entries of about 200 bytes"
    assert offsets(resumed(history(stream), last=1, room="many")) == many[-1:]
    assert cost(stream) == ["GetItem", "Query"]
    long = appended(stream, 400, "long", data="x" * 60_000)
    resumed(subject, last=1, room="long")
    assert cost(stream) == ["GetItem", "Query"]
    stream.read_units = 0
    assert offsets(resumed(subject, last=100, room="long")) == long[-100:-99]
    assert cost(stream) == ["GetItem", "Query", "GetItem", "Query"], "two at the head, the first one, and the next"
    assert stream.read_units <= 1 + 4 * 16
    stream.read_units = 0
    assert offsets(resumed(subject, last=100, room="long")) == long[-100:-99]
    assert cost(stream) == ["GetItem"], "the messages were remembered"


def test_the_first_of_few_long_messages_is_found_with_few_reads(stream: StreamTable, subject: History) -> None:
    appended(stream, 50, data="x" * 60_000, seconds=60)
    kept = appended(stream, 6, data="x" * 60_000)
    stream.now += 61
    resumed(subject, last=1)
    cost(stream)
    stream.read_units = 0
    assert offsets(resumed(subject, last=50)) == kept[:1]
    calls = cost(stream)
    assert calls.count("GetItem") <= 1 + 1 + 6, "the head, the fiftieth message, and six halves"
    assert calls.count("Query") == 1
    assert stream.read_units <= 10 * 16, "not all 50 are read, of which most have expired"


def test_the_last_messages_of_25_rooms_cost_two_reads_each(stream: StreamTable, subject: History) -> None:
    rooms = [f"room-{number}" for number in range(25)]
    sent = {room: appended(stream, 101, room, data="x" * 9_000) for room in rooms}
    positions = {room: Position(last=100) for room in rooms}
    found = subject.resume(positions, 25)
    assert offsets(found["room-0"]) == sent["room-0"][1:9]
    assert all(found[room] == Recovery(sent[room][0], recovered=True, more=True) for room in rooms[1:])
    calls = cost(stream)
    assert (calls.count("BatchGetItem"), calls.count("Query"), calls.count("GetItem")) == (1, 25, 24)


def test_rooms_for_which_nothing_may_be_read_any_more_do_not_look_empty(stream: StreamTable, subject: History) -> None:
    appended(stream, 300, "skipped", data="x" * 90_000, expires_at_ms=int(NOW * 1000) + 1)
    stream.now += 1
    sent = appended(stream, 5)
    found = subject.resume({"skipped": Position(last=3), "a": Position(last=3)}, 2)
    assert cost(stream).count("Query") == 12
    assert (offsets(found["a"]), found["a"].more) == (sent[2:3], True), "one was looked at, to know where to begin"
    assert read_on(subject, found["a"]) == sent[-3:]
    assert found["skipped"].more
    assert read_on(subject, found["skipped"], "skipped") == []


def test_a_cache_that_holds_nothing_changes_no_result(stream: StreamTable) -> None:
    first, *missed = appended(stream, 30, data="x" * 1_000)
    subject = history(stream, EntryCache(max_bytes=0))
    assert offsets(resumed(subject, first)) == missed
    assert offsets(resumed(subject, last=7)) == missed[-7:]
