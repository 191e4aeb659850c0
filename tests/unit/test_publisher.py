"""The queue messages of broadcasts."""

from hashlib import sha256
from typing import Any

import pytest

from gatecast import Broadcast, InvalidBroadcast, Publisher, decode, queue_message
from gatecast.publisher import is_fifo

TO_ROOM = Broadcast(id="42", room="lobby", data="hello")
TO_CONNECTIONS = Broadcast(id="42", connections=("a", "b"), data="hello")


class Queue:
    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def send_message(self, **kwargs: Any) -> None:
        self.calls.append(kwargs)


def without_body(broadcast: Broadcast, *, fifo: bool) -> dict[str, str]:
    message = queue_message(broadcast, fifo=fifo)
    assert decode(message.pop("MessageBody")) == broadcast
    return message


def test_a_standard_queue_is_fair_between_rooms_and_deduplicates_nothing() -> None:
    assert without_body(TO_ROOM, fifo=False) == {"MessageGroupId": "lobby"}
    assert without_body(TO_CONNECTIONS, fifo=False) == {"MessageGroupId": "42"}


@pytest.mark.parametrize("url", ["https://sqs/1/q.fifo", "https://sqs/1/q.fifo/"])
def test_a_fifo_queue_is_known_by_its_name(url: str) -> None:
    assert is_fifo(url)
    assert not is_fifo(url.replace(".fifo", "-fifo"))


def digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def test_a_fifo_queue_keeps_the_order_of_a_room() -> None:
    assert without_body(TO_ROOM, fifo=True) == {
        "MessageGroupId": "lobby",
        "MessageDeduplicationId": digest("lobby\x0042\0"),
    }
    assert without_body(TO_CONNECTIONS, fifo=True) == {
        "MessageGroupId": "42",
        "MessageDeduplicationId": digest("\x0042\0"),
    }


def test_the_parts_of_a_split_room_have_groups_of_their_own_on_a_fifo_queue() -> None:
    part = Broadcast(id="42", room="lobby", data="hello", shard=3, part="s3")
    message = without_body(part, fifo=True)
    assert message["MessageGroupId"] == f"{digest('lobby')}#3".ljust(110, "#")
    assert message["MessageDeduplicationId"] == digest("lobby\x0042\0s3")
    assert without_body(part, fifo=False) == {"MessageGroupId": "lobby"}


@pytest.mark.parametrize("room", ["lobby#0", "#", f"{digest('lobby')}#0", f"{digest('lobby')}#0".ljust(100, "#")])
def test_no_room_shares_a_group_with_another_rooms_shard(room: str) -> None:
    part = Broadcast(id="1", room="lobby", data="hello", shard=0, part="s0")
    other = Broadcast(id="1", room=room, data="hello")
    assert queue_message(other, fifo=True)["MessageGroupId"] != queue_message(part, fifo=True)["MessageGroupId"]


def test_a_part_may_contain_any_character_on_a_fifo_queue() -> None:
    broadcast = Broadcast(id="42", connections=("a",), data="hello", part="two wörds")
    assert queue_message(broadcast, fifo=True)["MessageDeduplicationId"] == digest("\x0042\0two wörds")


def test_the_same_broadcast_can_be_sent_again_within_five_minutes() -> None:
    ids = {
        queue_message(TO_ROOM, fifo=True, sending=sending)["MessageDeduplicationId"] for sending in ("", "one", "two")
    }
    assert len(ids) == 3
    assert "MessageDeduplicationId" not in queue_message(TO_ROOM, fifo=False, sending="one")


@pytest.mark.parametrize("url", ["https://sqs.eu-west-1.amazonaws.com/1/queue", "https://queue/1/queue.fifo"])
def test_publishing_is_one_call(url: str) -> None:
    queue = Queue()
    Publisher(queue, url).publish(TO_ROOM)
    assert queue.calls == [{"QueueUrl": url, **queue_message(TO_ROOM, fifo=url.endswith(".fifo"))}]


def test_an_invalid_broadcast_is_rejected_before_any_call() -> None:
    queue = Queue()
    with pytest.raises(InvalidBroadcast):
        Publisher(queue, "https://queue").publish(Broadcast(id="two words", room="lobby", data="hello"))
    assert queue.calls == []


def test_a_standard_queue_delays_a_message() -> None:
    queue = Queue()
    Publisher(queue, "https://queue/1/queue").publish(TO_ROOM, delay_seconds=15)
    assert queue.calls == [
        {"QueueUrl": "https://queue/1/queue", "DelaySeconds": 15, **queue_message(TO_ROOM, fifo=False)}
    ]


@pytest.mark.parametrize(
    ("url", "seconds"),
    [("https://q", -1), ("https://q", 901), ("https://q", True), ("https://q", 1.5), ("https://q.fifo", 15)],
)
def test_a_delay_that_the_queue_does_not_support_is_rejected_before_any_call(url: str, seconds: Any) -> None:
    queue = Queue()
    with pytest.raises(ValueError, match="delay_seconds"):
        Publisher(queue, url).publish(TO_ROOM, delay_seconds=seconds)
    assert queue.calls == []


def test_a_publisher_knows_its_kind_of_queue() -> None:
    assert Publisher(Queue(), "https://q.fifo").fifo
    assert not Publisher(Queue(), "https://q").fifo
