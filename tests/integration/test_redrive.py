"""Redrive: dead letters are resent, once each; messages that are not the worker's broadcasts stay where they are."""

import os
import re
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from gatecast import Broadcast, Publisher, decode, encode, queue_message
from gatecast.dead_letter_queue import Redrive
from local.resources import Queues, create_queues

CHECKOUT = Path(__file__).parents[2]
PUBLISHED_AT_MS = int((time.time() - 200) * 1000)


def letter(number: int, part: str = "u-1") -> Broadcast:
    return Broadcast(
        id=f"b{number}", connections=(f"c{number}=",), data="x", part=part, published_at_ms=PUBLISHED_AT_MS
    )


def put(sqs: Any, url: str, body: str, reason: str | None, **more: str) -> None:
    attributes = {"reason": {"DataType": "String", "StringValue": reason}} if reason else {}
    sqs.send_message(QueueUrl=url, MessageBody=body, MessageAttributes=attributes, **more)


def run(queues: Queues, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    variables = {name: value for name, value in os.environ.items() if name.startswith("AWS_")} | {
        "GATECAST_QUEUE_URL": queues.url,
        "GATECAST_DEAD_LETTER_QUEUE_URL": queues.dead_letter_url,
        **environment,
    }
    command = [sys.executable, "-m", "gatecast.cli", "dead-letters", "redrive", *arguments]
    return subprocess.run(command, check=False, cwd=CHECKOUT, env=variables, capture_output=True, text=True, timeout=60)


def received(sqs: Any, url: str) -> list[Any]:
    found: list[Any] = []
    while messages := sqs.receive_message(
        QueueUrl=url, MaxNumberOfMessages=10, VisibilityTimeout=60, MessageSystemAttributeNames=["All"]
    ).get("Messages"):
        found += messages
    return found


def test_broadcasts_are_resent_and_other_messages_are_skipped(sqs: Any, queues: Queues) -> None:
    for number in range(25):
        put(sqs, queues.dead_letter_url, encode(letter(number)), ("undelivered", "rejected", "receives")[number % 3])
    put(sqs, queues.dead_letter_url, "not a broadcast", "poison: body: not valid JSON \x9b2J")
    put(sqs, queues.dead_letter_url, "{}", "undelivered")
    put(sqs, queues.dead_letter_url, encode(letter(99)), None)
    put(sqs, queues.dead_letter_url, encode(letter(98, "")), "too_large")

    dry = run(queues, "--dry-run")
    assert (dry.returncode, dry.stderr) == (0, "")
    assert dry.stdout.splitlines()[-2:] == [
        "25 would be resent (receives: 8, rejected: 8, undelivered: 9)",
        "4 skipped (no reason: 1, poison: 1, too_large: 1, undelivered: 1)",
    ]
    listed = dry.stdout.splitlines()[:-2]
    why = "clients that use v2 would receive more than 131,072 bytes"
    assert {re.sub(r"(?<=message )\S+|\d+(?= min old)", "…", line) for line in listed} == {
        *(
            f"would be resent: {('undelivered', 'rejected', 'receives')[number % 3]}, 1 connection, "
            f"id b{number}, part u-1, … min old"
            for number in range(25)
        ),
        "skipped: poison: body: not valid JSON \\x9b2J, … min old, message …",
        "skipped: undelivered, … min old, message …",
        "skipped: no reason, 1 connection, id b99, part u-1, … min old, message …",
        f"skipped: too_large: {why}, 1 connection, id b98, … min old, message …",
    }
    assert len(listed) == 29
    assert not received(sqs, queues.url)

    done = run(queues)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-2] == "25 resent (receives: 8, rejected: 8, undelivered: 9)"
    messages = received(sqs, queues.url)
    assert {decode(message["Body"]) for message in messages} == {letter(number) for number in range(25)}
    assert len(messages) == 25
    assert {message["Attributes"]["MessageGroupId"] for message in messages} == {f"b{n}" for n in range(25)}

    repeated = run(queues)
    assert repeated.stdout.splitlines()[-2:] == [
        "0 resent",
        "4 skipped (no reason: 1, poison: 1, too_large: 1, undelivered: 1)",
    ]
    assert sorted(message["Body"] for message in received(sqs, queues.dead_letter_url)) == sorted(
        ["not a broadcast", "{}", encode(letter(99)), encode(letter(98, ""))]
    )


def put_broadcast(sqs: Any, url: str, broadcast: Broadcast, reason: str | None) -> None:
    """Send to a FIFO queue, without deduplication against earlier messages."""
    message = queue_message(broadcast, fifo=True, sending=uuid.uuid4().hex)
    put(sqs, url, message.pop("MessageBody"), reason, **message)


def test_on_a_fifo_queue_groups_and_order_are_kept(sqs: Any, fifo_queues: Queues) -> None:
    for number in range(9):
        put_broadcast(sqs, fifo_queues.dead_letter_url, Broadcast(id=f"b{number}", room="lobby", data="x"), "receives")

    done = run(fifo_queues)

    assert done.stdout.splitlines()[-2:] == ["9 resent (receives: 9)", "0 skipped"], done.stderr
    messages = received(sqs, fifo_queues.url)
    assert [decode(message["Body"]).id for message in messages] == [f"b{number}" for number in range(9)]
    assert {message["Attributes"]["MessageGroupId"] for message in messages} == {"lobby"}


def test_a_fifo_queue_does_not_deduplicate_a_recently_resent_broadcast(sqs: Any, fifo_queues: Queues) -> None:
    """The same broadcast was published, given up, resent and given up again, all within five minutes."""
    broadcast = Broadcast(id="one", room="lobby", data="x")
    Publisher(sqs, fifo_queues.url).publish(broadcast)
    for _ in range(2):
        [message] = received(sqs, fifo_queues.url)
        sqs.delete_message(QueueUrl=fifo_queues.url, ReceiptHandle=message["ReceiptHandle"])
        put_broadcast(sqs, fifo_queues.dead_letter_url, broadcast, "receives")
        assert run(fifo_queues).stdout.splitlines()[-2] == "1 resent (receives: 1)"
    [message] = received(sqs, fifo_queues.url)
    assert decode(message["Body"]) == broadcast
    assert not received(sqs, fifo_queues.dead_letter_url)


@pytest.mark.parametrize("source_is_fifo", [False, True])
def test_the_queues_may_be_of_different_types(sqs: Any, unique_name: str, queues: Queues, source_is_fifo: bool) -> None:
    fifo = create_queues(sqs, f"{unique_name}-other", fifo=True)
    source, target = (fifo, queues) if source_is_fifo else (queues, fifo)
    letters = [letter(number) for number in range(3)] + [Broadcast(id="b3", room="lobby", data="x", part="s0", shard=0)]
    for each in letters:
        if source_is_fifo:
            put_broadcast(sqs, source.dead_letter_url, each, "undelivered")
        else:
            put(sqs, source.dead_letter_url, encode(each), "undelivered")

    done = run(Queues(target.url, source.dead_letter_url))

    assert (done.returncode, done.stderr) == (0, "")
    lines = {re.sub(r"\d+(?= min old)", "…", line) for line in done.stdout.splitlines()}
    assert "resent: undelivered, room lobby, id b3, part s0, … min old" in lines, "the age is that of the queue message"
    assert {decode(message["Body"]) for message in received(sqs, target.url)} == set(letters)
    assert not received(sqs, source.dead_letter_url)


@pytest.mark.parametrize("spelling", ["{}", "{}/", "{}?Action=ReceiveMessage"])
def test_the_queue_itself_is_rejected_as_the_source(sqs: Any, queues: Queues, spelling: str) -> None:
    put(sqs, queues.url, encode(letter(1)), "undelivered")
    for arguments in ((), ("--dry-run",)):
        done = run(queues._replace(dead_letter_url=spelling.format(queues.url)), *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        [line] = done.stderr.splitlines()
        assert "GATECAST_DEAD_LETTER_QUEUE_URL" in line
        assert " GATECAST_QUEUE_URL" in line
    assert len(received(sqs, queues.url)) == 1


def test_after_an_interruption_between_send_and_delete_a_fifo_queue_has_each_message_once(
    sqs: Any, fifo_queues: Queues
) -> None:
    for number in range(3):
        put_broadcast(sqs, fifo_queues.dead_letter_url, letter(number), "undelivered")
    work = Redrive(InterruptedWhileSending(sqs), source=fifo_queues.dead_letter_url, target=fifo_queues.url)
    with pytest.raises(KeyboardInterrupt):
        work.run()
    assert run(fifo_queues).stdout.splitlines()[-2] == "1 resent (undelivered: 1)"
    assert sorted(decode(message["Body"]).id for message in received(sqs, fifo_queues.url)) == ["b0", "b1", "b2"]


def test_skipped_messages_do_not_hide_later_ones_of_their_group(sqs: Any, fifo_queues: Queues) -> None:
    for number in range(8):
        put_broadcast(sqs, fifo_queues.dead_letter_url, Broadcast(id=f"a{number}", room="lobby", data="x"), None)
    for number in range(12):
        put_broadcast(
            sqs, fifo_queues.dead_letter_url, Broadcast(id=f"b{number:02d}", room="lobby", data="x"), "receives"
        )

    done = run(fifo_queues)

    assert done.stdout.splitlines()[-2:] == ["12 resent (receives: 12)", "8 skipped (no reason: 8)"], done.stderr
    messages = received(sqs, fifo_queues.url)  # ten of the group; the others are behind these
    assert [decode(message["Body"]).id for message in messages] == [f"b{number:02d}" for number in range(10)]


class InterruptedWhileSending:
    """An SQS client that is interrupted just after it has sent the third message."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._sent = 0
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def send_message(self, **arguments: Any) -> Any:
        response = self._client.send_message(**arguments)
        with self._lock:
            self._sent += 1
            if self._sent == 3:
                raise KeyboardInterrupt
        return response


def test_an_interrupted_redrive_loses_no_message(sqs: Any, queues: Queues) -> None:
    for number in range(5):
        put(sqs, queues.dead_letter_url, encode(letter(number)), "undelivered")
    work = Redrive(InterruptedWhileSending(sqs), source=queues.dead_letter_url, target=queues.url)
    with pytest.raises(KeyboardInterrupt):
        work.run()

    sent, left = received(sqs, queues.url), received(sqs, queues.dead_letter_url)
    assert {decode(message["Body"]).id for message in [*sent, *left]} == {f"b{number}" for number in range(5)}
    assert len(left) >= 1, "the message sent just before the interruption is still a dead letter"


@pytest.mark.parametrize("missing", ["GATECAST_QUEUE_URL", "GATECAST_DEAD_LETTER_QUEUE_URL"])
def test_a_missing_variable_is_named(aws: dict[str, str], missing: str) -> None:
    del aws
    queues = Queues("http://127.0.0.1:1/q", "http://127.0.0.1:1/d")
    done = run(queues, **{missing: ""})
    assert done.returncode == 2
    assert missing in done.stderr


def test_a_missing_queue_is_reported(sqs: Any, queues: Queues) -> None:
    del sqs
    done = run(queues._replace(dead_letter_url=f"{queues.dead_letter_url}-other"))
    assert done.returncode == 1
    assert "NonExistentQueue" in done.stderr or "QueueDoesNotExist" in done.stderr
    assert "safe to run it again" in done.stderr
