"""Dead letters are sent again, once each; what is not the worker's broadcast stays where it is."""

import asyncio
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import aioboto3
import pytest

from gatecast import Broadcast, Publisher, decode, encode, queue_message
from local.resources import Queues
from worker.redrive import Redrive

CHECKOUT = Path(__file__).parents[2]


def letter(number: int, part: str = "u-1") -> Broadcast:
    return Broadcast(id=f"b{number}", connections=(f"c{number}=",), data="x", part=part)


def put(sqs: Any, url: str, body: str, reason: str | None, **more: str) -> None:
    attributes = {"reason": {"DataType": "String", "StringValue": reason}} if reason else {}
    sqs.send_message(QueueUrl=url, MessageBody=body, MessageAttributes=attributes, **more)


def run(queues: Queues, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    variables = {name: value for name, value in os.environ.items() if name.startswith("AWS_")} | {
        "GATECAST_QUEUE_URL": queues.url,
        "GATECAST_DEAD_LETTER_QUEUE_URL": queues.dead_letter_url,
        **environment,
    }
    command = [sys.executable, "-m", "worker.redrive", *arguments]
    return subprocess.run(  # noqa: S603
        command, check=False, cwd=CHECKOUT, env=variables, capture_output=True, text=True, timeout=60
    )


def received(sqs: Any, url: str) -> list[Any]:
    found: list[Any] = []
    while messages := sqs.receive_message(
        QueueUrl=url, MaxNumberOfMessages=10, VisibilityTimeout=60, MessageSystemAttributeNames=["All"]
    ).get("Messages"):
        found += messages
    return found


def test_broadcasts_are_sent_again_and_all_else_is_left(sqs: Any, queues: Queues) -> None:
    for number in range(25):
        put(sqs, queues.dead_letter_url, encode(letter(number)), ("undelivered", "rejected", "receives")[number % 3])
    put(sqs, queues.dead_letter_url, "no broadcast", "poison: body: not valid JSON")
    put(sqs, queues.dead_letter_url, "{}", "undelivered")
    put(sqs, queues.dead_letter_url, encode(letter(99)), None)

    dry = run(queues, "--dry-run")
    assert (dry.returncode, dry.stderr) == (0, "")
    assert dry.stdout.splitlines() == [
        "25 would be sent again (receives: 8, rejected: 8, undelivered: 9)",
        "3 left alone (no reason: 1, poison: 1, undelivered: 1)",
    ]
    assert not received(sqs, queues.url)

    done = run(queues)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "25 sent again (receives: 8, rejected: 8, undelivered: 9)"
    messages = received(sqs, queues.url)
    assert {decode(message["Body"]) for message in messages} == {letter(number) for number in range(25)}
    assert len(messages) == 25
    assert {message["Attributes"]["MessageGroupId"] for message in messages} == {f"b{n}" for n in range(25)}

    again = run(queues)
    assert again.stdout.splitlines() == ["0 sent again", "3 left alone (no reason: 1, poison: 1, undelivered: 1)"]
    assert sorted(message["Body"] for message in received(sqs, queues.dead_letter_url)) == sorted(
        ["no broadcast", "{}", encode(letter(99))]
    )


def put_broadcast(sqs: Any, url: str, broadcast: Broadcast, reason: str | None) -> None:
    """On a FIFO queue, whatever was put there before."""
    message = queue_message(broadcast, fifo=True, sending=uuid.uuid4().hex)
    put(sqs, url, message.pop("MessageBody"), reason, **message)


def test_on_a_fifo_queue_groups_and_order_are_kept(sqs: Any, fifo_queues: Queues) -> None:
    for number in range(9):
        put_broadcast(sqs, fifo_queues.dead_letter_url, Broadcast(id=f"b{number}", room="lobby", data="x"), "receives")

    done = run(fifo_queues)

    assert done.stdout.splitlines() == ["9 sent again (receives: 9)", "0 left alone"], done.stderr
    messages = received(sqs, fifo_queues.url)
    assert [decode(message["Body"]).id for message in messages] == [f"b{number}" for number in range(9)]
    assert {message["Attributes"]["MessageGroupId"] for message in messages} == {"lobby"}


def test_a_fifo_queue_does_not_swallow_what_it_had_a_moment_ago(sqs: Any, fifo_queues: Queues) -> None:
    """The same broadcast was published, given up, sent again and given up again, all within five minutes."""
    broadcast = Broadcast(id="one", room="lobby", data="x")
    Publisher(sqs, fifo_queues.url).publish(broadcast)
    for _ in range(2):
        [message] = received(sqs, fifo_queues.url)
        sqs.delete_message(QueueUrl=fifo_queues.url, ReceiptHandle=message["ReceiptHandle"])
        put_broadcast(sqs, fifo_queues.dead_letter_url, broadcast, "receives")
        assert run(fifo_queues).stdout.splitlines()[0] == "1 sent again (receives: 1)"
    [message] = received(sqs, fifo_queues.url)
    assert decode(message["Body"]) == broadcast
    assert not received(sqs, fifo_queues.dead_letter_url)


async def test_interrupted_between_sending_and_deleting_a_fifo_queue_has_it_once(sqs: Any, fifo_queues: Queues) -> None:
    for number in range(3):
        put_broadcast(sqs, fifo_queues.dead_letter_url, letter(number), "undelivered")
    async with aioboto3.Session().client("sqs") as client:
        interrupted = InterruptedWhileSending(client)
        work = Redrive(interrupted, source=fifo_queues.dead_letter_url, target=fifo_queues.url, dry_run=False)
        with pytest.raises(asyncio.CancelledError):
            await work.run()
    assert run(fifo_queues).stdout.splitlines()[0] == "1 sent again (undelivered: 1)"
    assert sorted(decode(message["Body"]).id for message in received(sqs, fifo_queues.url)) == ["b0", "b1", "b2"]


def test_what_is_left_alone_hides_nothing_behind_it_in_its_group(sqs: Any, fifo_queues: Queues) -> None:
    for number in range(8):
        put_broadcast(sqs, fifo_queues.dead_letter_url, Broadcast(id=f"a{number}", room="lobby", data="x"), None)
    for number in range(12):
        put_broadcast(
            sqs, fifo_queues.dead_letter_url, Broadcast(id=f"b{number:02d}", room="lobby", data="x"), "receives"
        )

    done = run(fifo_queues)

    assert done.stdout.splitlines() == ["12 sent again (receives: 12)", "8 left alone (no reason: 8)"], done.stderr
    messages = received(sqs, fifo_queues.url)  # ten of the group; the others are behind these
    assert [decode(message["Body"]).id for message in messages] == [f"b{number:02d}" for number in range(10)]


class InterruptedWhileSending:
    """An SQS client whose program is interrupted at the third message, just after it was sent."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._sent = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def send_message(self, **arguments: Any) -> Any:
        answer = await self._client.send_message(**arguments)
        self._sent += 1
        if self._sent == 3:
            raise asyncio.CancelledError
        return answer


async def test_interrupted_nothing_is_lost(sqs: Any, queues: Queues) -> None:
    for number in range(5):
        put(sqs, queues.dead_letter_url, encode(letter(number)), "undelivered")
    async with aioboto3.Session().client("sqs") as client:
        work = Redrive(InterruptedWhileSending(client), source=queues.dead_letter_url, target=queues.url, dry_run=False)
        with pytest.raises(asyncio.CancelledError):
            await work.run()

    sent, left = received(sqs, queues.url), received(sqs, queues.dead_letter_url)
    assert {decode(message["Body"]).id for message in [*sent, *left]} == {f"b{number}" for number in range(5)}
    assert len(left) >= 1, "what was sent when it was interrupted is still a dead letter"


@pytest.mark.parametrize("missing", ["GATECAST_QUEUE_URL", "GATECAST_DEAD_LETTER_QUEUE_URL"])
def test_a_missing_variable_is_named(aws: dict[str, str], missing: str) -> None:
    del aws
    queues = Queues("http://127.0.0.1:1/q", "http://127.0.0.1:1/d")
    done = run(queues, **{missing: ""})
    assert done.returncode == 2
    assert missing in done.stderr


def test_a_queue_that_is_not_there_is_said(sqs: Any, queues: Queues) -> None:
    del sqs
    done = run(queues._replace(dead_letter_url=f"{queues.dead_letter_url}-other"))
    assert done.returncode == 1
    assert "NonExistentQueue" in done.stderr or "QueueDoesNotExist" in done.stderr
    assert "safe to run it again" in done.stderr
