"""Misses are kept where a person finds them: on the dead-letter queue, or in the log."""

from collections.abc import Sequence
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from gatecast import Broadcast, decode
from worker.decisions.outcome import Outcome
from worker.observe.damaged_items import DamagedItems
from worker.observe.health import Health
from worker.pipeline.dead_letters import DeadLetters
from worker.ports import DependencyError, Message, MessageQueue, MessageRejected, PortError

BROADCAST = Broadcast(id="one", room="room", data="secret")
MISSED = {Outcome.REJECTED: ["a=", "b="], Outcome.UNDELIVERED: ["c="]}


class FakeQueue:
    """Returns each of `errors` in turn, then takes everything."""

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


async def kept(queue: FakeQueue | None) -> tuple[dict[str, int], list[Any]]:
    """The counts by reason, and what was logged."""
    counts = dict.fromkeys(("rejected", "undelivered"), 0)
    with capture_logs() as logged:
        await DeadLetters(cast("MessageQueue | None", queue), Health(), counts).missed(BROADCAST, MISSED)
    assert "secret" not in str(logged)
    return counts, logged


async def test_with_a_queue_there_is_one_letter_a_reason() -> None:
    queue = FakeQueue()
    counts, logged = await kept(queue)
    letters = [decode(message["MessageBody"]) for message in queue.sent]
    reasons = [message["MessageAttributes"]["reason"]["StringValue"] for message in queue.sent]
    assert dict(zip(reasons, (letter.connections for letter in letters), strict=True)) == {
        "rejected": ("a=", "b="),
        "undelivered": ("c=",),
    }
    assert counts == {"rejected": 1, "undelivered": 1}
    assert not logged


async def test_without_one_there_is_one_event_with_all_ids() -> None:
    counts, logged = await kept(None)
    [event] = logged
    assert (event["event"], event["log_level"]) == ("broadcast.missed", "error")
    assert (event["rejected"], event["undelivered"]) == (["a=", "b="], ["c="])
    assert counts == {"rejected": 1, "undelivered": 1}


async def test_a_rejected_dead_letter_is_neither_safe_nor_retried() -> None:
    with pytest.raises(MessageRejected, match="InvalidParameterValue"):
        await kept(FakeQueue(MessageRejected("InvalidParameterValue")))


LONG = "x" * 500


async def test_an_id_that_no_dead_letter_can_name_is_logged_and_the_others_are_kept_exactly() -> None:
    queue, damaged = FakeQueue(), {"membership": 0}
    missed = {Outcome.REJECTED: ["a=", LONG, "b="], Outcome.UNDELIVERED: [LONG + "y"]}
    with capture_logs() as logged:
        await dead_letters(queue, damaged).missed(BROADCAST, missed)
    assert [letter.connections for letter in queue.letters] == [("a=", "b=")]
    [event] = [each for each in logged if each["event"] == "broadcast.missed"]
    assert (event["rejected"], event["undelivered"]) == ([LONG], [LONG + "y"])
    assert damaged == {"membership": 2}


async def test_what_one_dead_letter_cannot_hold_goes_into_several() -> None:
    broadcast = Broadcast(id="one", room="room", data="\x01" * 131_072)  # six bytes each in JSON
    ids = ["\x01" * 100 + f"{number}" for number in range(900)]
    queue = FakeQueue()
    await dead_letters(queue).missed(broadcast, {Outcome.UNDELIVERED: ids})
    assert len(queue.letters) == len({letter.part for letter in queue.letters}) == 4
    assert sorted(each for letter in queue.letters for each in letter.connections or ()) == sorted(ids)


async def test_a_fifo_queue_swallows_only_the_retries_of_one_dead_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(_seconds: float) -> None: ...

    monkeypatch.setattr("worker.resilience.asyncio.sleep", at_once)
    queue = FakeQueue(
        DependencyError("InternalError"), DependencyError("InternalError"), url="http://queue/dead-letters.fifo"
    )
    letters = dead_letters(queue)
    await letters.broadcast(BROADCAST, "receives")
    await letters.broadcast(BROADCAST, "receives")
    ids = [message["MessageDeduplicationId"] for message in queue.sent]
    assert len(ids) == 4
    assert ids[0] == ids[1] == ids[2] != ids[3]


async def test_poison_on_a_fifo_queue_is_in_nobodys_way() -> None:
    queue = FakeQueue(url="http://queue/dead-letters.fifo")
    letters = dead_letters(queue)
    for number in ("one", "two"):
        await letters.poison(Message(number, "receipt", "no broadcast", 1, 0, "group"), "poison: no JSON")
    assert [message["MessageGroupId"] for message in queue.sent] == ["one", "two"]
    assert [message["MessageDeduplicationId"] for message in queue.sent] == ["one", "two"]
