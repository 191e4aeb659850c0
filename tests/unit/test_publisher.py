"""What goes to SQS."""

from typing import Any

import pytest

from gatecast import Broadcast, InvalidBroadcast, Publisher, decode, queue_message

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


def test_a_fifo_queue_keeps_the_order_of_a_room() -> None:
    assert without_body(TO_ROOM, fifo=True) == {"MessageGroupId": "lobby", "MessageDeduplicationId": "42~"}
    assert without_body(TO_CONNECTIONS, fifo=True) == {"MessageGroupId": "42", "MessageDeduplicationId": "42~"}


def test_the_parts_of_a_split_room_have_groups_of_their_own_on_a_fifo_queue() -> None:
    part = Broadcast(id="42", room="lobby", data="hello", shard=3, part="3")
    assert without_body(part, fifo=True) == {"MessageGroupId": "lobby#3", "MessageDeduplicationId": "42~3"}
    assert without_body(part, fifo=False) == {"MessageGroupId": "lobby"}


def test_a_part_that_a_fifo_queue_cannot_take_is_refused_by_name() -> None:
    broadcast = Broadcast(id="42", connections=("a",), data="hello", part="two words")
    assert without_body(broadcast, fifo=False)
    with pytest.raises(InvalidBroadcast) as error:
        queue_message(broadcast, fifo=True)
    assert error.value.field == "part"


@pytest.mark.parametrize("url", ["https://sqs.eu-west-1.amazonaws.com/1/queue", "https://queue/1/queue.fifo"])
def test_publishing_is_one_call(url: str) -> None:
    queue = Queue()
    Publisher(queue, url).publish(TO_ROOM)
    assert queue.calls == [{"QueueUrl": url, **queue_message(TO_ROOM, fifo=url.endswith(".fifo"))}]


def test_an_invalid_broadcast_is_refused_before_any_call() -> None:
    queue = Queue()
    with pytest.raises(InvalidBroadcast):
        Publisher(queue, "https://queue").publish(Broadcast(id="two words", room="lobby", data="hello"))
    assert queue.calls == []
