"""Missed deliveries are stored on the dead-letter queue, or in the log if there is none."""

from collections.abc import Sequence
from typing import Any, cast

import msgspec
import pytest
from msgspec import UNSET
from structlog.testing import capture_logs

from gatecast import Broadcast, decode, encode
from gatecast.broadcast import MAX_BODY_BYTES
from worker.decisions.outcome import Outcome
from worker.observe.damaged_items import DamagedItems
from worker.observe.health import Health
from worker.pipeline.dead_letters import DeadLetters
from worker.ports import DependencyError, Message, MessageQueue, MessageRejected, PortError

BROADCAST = Broadcast(id="one", room="room", data="secret")
MISSED = {Outcome.REJECTED: ["a=", "b="], Outcome.UNDELIVERED: ["c="]}


class FakeQueue:
    """Returns each of `errors` in turn, then accepts every message."""

    def __init__(self, *errors: PortError, url: str = "http://queue/dead-letters") -> None:
        self.url = url
        self.sent: list[dict[str, Any]] = []
        self._errors = [*errors]

    async def send(self, messages: Sequence[dict[str, Any]]) -> list[PortError | None]:
        self.sent += messages
        return [self._errors.pop(0) if self._errors else None]

    @property
    def letters(self) -> list[Broadcast]:
        return [decode(message["MessageBody"]) for message in self.sent]


def dead_letters(queue: FakeQueue | None, damaged: dict[str, int] | None = None) -> DeadLetters:
    counts = dict.fromkeys(("rejected", "undelivered", "receives", "poison"), 0)
    return DeadLetters(
        cast("MessageQueue | None", queue), Health(), counts, DamagedItems({} if damaged is None else damaged)
    )


async def store_missed(queue: FakeQueue | None) -> tuple[dict[str, int], list[Any]]:
    """Stores `MISSED`; returns the counts by reason and the log entries."""
    counts = dict.fromkeys(("rejected", "undelivered"), 0)
    with capture_logs() as logged:
        await DeadLetters(cast("MessageQueue | None", queue), Health(), counts).store_missed(BROADCAST, MISSED)
    assert "secret" not in str(logged)
    return counts, logged


async def test_with_a_queue_there_is_one_dead_letter_per_reason() -> None:
    queue = FakeQueue()
    counts, logged = await store_missed(queue)
    letters = [decode(message["MessageBody"]) for message in queue.sent]
    reasons = [message["MessageAttributes"]["reason"]["StringValue"] for message in queue.sent]
    assert dict(zip(reasons, (letter.connections for letter in letters), strict=True)) == {
        "rejected": ("a=", "b="),
        "undelivered": ("c=",),
    }
    assert counts == {"rejected": 1, "undelivered": 1}
    assert not logged


async def test_without_a_queue_one_log_event_holds_all_ids() -> None:
    counts, logged = await store_missed(None)
    [event] = logged
    assert (event["event"], event["log_level"]) == ("broadcast.missed", "error")
    assert (event["rejected"], event["undelivered"]) == (["a=", "b="], ["c="])
    assert counts == {"rejected": 1, "undelivered": 1}


async def test_a_rejected_dead_letter_is_an_error_and_is_not_retried() -> None:
    with pytest.raises(MessageRejected, match="InvalidParameterValue"):
        await store_missed(FakeQueue(MessageRejected("InvalidParameterValue")))


async def test_a_reason_has_only_what_a_terminal_and_sqs_accept() -> None:
    queue = FakeQueue()
    message = Message("m", "receipt", "no broadcast", 1, 0, "")
    await dead_letters(queue).store_poison(message, "poison: \x1b[2J\ufffe\u202e\nforged")
    await dead_letters(queue).store_poison(message, "\x1b" * 1_000)
    first, second = (each["MessageAttributes"]["reason"]["StringValue"] for each in queue.sent)
    assert first == r"poison: \x1b[2J\ufffe\u202e\nforged"
    assert len(second) == 250


LONG = "x" * 500


async def test_an_id_that_no_dead_letter_can_name_is_logged_and_the_others_are_stored() -> None:
    queue, damaged = FakeQueue(), {"membership": 0}
    missed = {Outcome.REJECTED: ["a=", LONG, "b="], Outcome.UNDELIVERED: [LONG + "y"]}
    with capture_logs() as logged:
        await dead_letters(queue, damaged).store_missed(BROADCAST, missed)
    assert [letter.connections for letter in queue.letters] == [("a=", "b=")]
    [event] = [each for each in logged if each["event"] == "broadcast.missed"]
    assert (event["rejected"], event["undelivered"]) == ([LONG], [LONG + "y"])
    assert damaged == {"membership": 2}


async def test_misses_that_exceed_one_dead_letter_are_stored_in_several() -> None:
    broadcast = Broadcast(id="one", room="room", data="\x01" * 131_072)  # six bytes each in JSON
    ids = ["\x01" * 100 + f"{number}" for number in range(900)]
    queue = FakeQueue()
    await dead_letters(queue).store_missed(broadcast, {Outcome.UNDELIVERED: ids})
    assert len(queue.letters) == len({letter.part for letter in queue.letters}) == 4
    assert sorted(each for letter in queue.letters for each in letter.connections or ()) == sorted(ids)


async def test_a_fifo_queue_deduplicates_only_retries_of_the_same_dead_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_sleep(_seconds: float) -> None: ...

    monkeypatch.setattr("worker.resilience.asyncio.sleep", no_sleep)
    queue = FakeQueue(
        DependencyError("InternalError"), DependencyError("InternalError"), url="http://queue/dead-letters.fifo"
    )
    letters = dead_letters(queue)
    await letters.store_broadcast(BROADCAST, "receives")
    await letters.store_broadcast(BROADCAST, "receives")
    ids = [message["MessageDeduplicationId"] for message in queue.sent]
    assert len(ids) == 4
    assert ids[0] == ids[1] == ids[2] != ids[3]


async def test_poison_messages_have_groups_of_their_own_on_a_fifo_queue() -> None:
    queue = FakeQueue(url="http://queue/dead-letters.fifo")
    letters = dead_letters(queue)
    for number in ("one", "two"):
        await letters.store_poison(Message(number, "receipt", "no broadcast", 1, 0, "group"), "poison: no JSON")
    assert [message["MessageGroupId"] for message in queue.sent] == ["one", "two"]
    assert [message["MessageDeduplicationId"] for message in queue.sent] == ["one", "two"]


async def test_a_broadcast_whose_frame_is_too_large_is_stored_as_it_is() -> None:
    queue, counts = FakeQueue(), {"too_large": 0}
    broadcast = Broadcast(id="one", room="room", data="secret", shard=3, part="s3", offset=7, except_=("a=",))
    await DeadLetters(cast("MessageQueue", queue), Health(), counts).store_too_large(broadcast)
    assert queue.letters == [broadcast]
    assert queue.sent[0]["MessageAttributes"]["reason"]["StringValue"] == "too_large"
    assert counts == {"too_large": 1}


async def test_a_broadcast_that_is_too_long_with_what_the_worker_added_is_stored_without_that() -> None:
    queue = FakeQueue()
    short = Broadcast(id="one", room="room", data="x", except_=("",))
    longest = msgspec.structs.replace(short, except_=("x" * (MAX_BODY_BYTES - len(encode(short))),))
    received = msgspec.structs.replace(longest, published_at_ms=1_700_000_000_000, offset=7)
    await dead_letters(queue).store_broadcast(received, "receives")
    assert queue.letters == [longest]


async def test_missed_deliveries_keep_their_room_their_offset_and_whom_the_broadcast_excludes() -> None:
    queue = FakeQueue()
    broadcast = Broadcast(id="one", room="room", data="x", offset=7, except_=("a=", "other="))
    await dead_letters(queue).store_missed(broadcast, MISSED)
    first, second = queue.letters
    assert [(each.origin_room, each.offset) for each in queue.letters] == [("room", 7)] * 2
    assert (first.connections, first.except_) == (("a=", "b="), ("a=",))
    assert (second.connections, second.except_) == (("c=",), UNSET)


async def test_misses_of_excluded_members_are_divided_until_they_fit() -> None:
    """An excluded member is named twice: as a connection, and in `except`."""
    ids = ["\x01" * 100 + f"{number}" for number in range(1_000)]
    broadcast = Broadcast(id="one", room="room", data="\x01" * 60_000, offset=7, except_=tuple(ids))
    queue = FakeQueue()
    await dead_letters(queue).store_missed(broadcast, {Outcome.UNDELIVERED: ids})
    assert len(queue.letters) > 1
    assert all(letter.except_ == letter.connections for letter in queue.letters)
    assert sorted(each for letter in queue.letters for each in letter.connections or ()) == sorted(ids)
