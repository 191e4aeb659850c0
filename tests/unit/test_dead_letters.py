"""Misses are kept where a person finds them: on the dead-letter queue, or in the log."""

from collections.abc import Sequence
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from gatecast import Broadcast, decode
from worker.dead_letters import DeadLetters, Refused
from worker.delivery.outcome import Outcome
from worker.health import Health
from worker.ports import MessageQueue

BROADCAST = Broadcast(id="one", room="room", data="secret")
MISSED = {Outcome.REJECTED: ["a=", "b="], Outcome.UNDELIVERED: ["c="]}


class FakeQueue:
    url = "http://queue/dead-letters"

    def __init__(self, code: str | None = None) -> None:
        self.sent: list[dict[str, Any]] = []
        self._code = code

    async def send(self, messages: Sequence[dict[str, Any]]) -> list[str | None]:
        self.sent += messages
        return [self._code]


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


async def test_what_the_queue_refuses_is_neither_safe_nor_tried_for_ever() -> None:
    with pytest.raises(Refused, match="InvalidParameterValue"):
        await kept(FakeQueue("InvalidParameterValue"))
