"""`python -m worker.redrive`: resend dead letters. Each reaches the connections that missed it, and no others.

It reads GATECAST_DEAD_LETTER_QUEUE_URL, sends every broadcast that the worker put there to GATECAST_QUEUE_URL, and
deletes it from the dead-letter queue only when SQS has accepted it. It may be interrupted and repeated: a broadcast
that is sent twice has the same id and part, so the second one is a duplicate. Poison messages, messages that SQS itself
moved (no `reason`), and broadcasts whose frame is too large to be posted are skipped, because a person should look at
these first. It prints one line per message, without its payload; where no publisher has set a time, the age is that of
the queue message.

A FIFO queue that received the same broadcast within five minutes would drop it as a duplicate, and it would be lost.
Therefore the deduplication id includes the dead letter's own message id: a dead letter that is sent twice is stored
once, and another dead letter of the same broadcast is stored as well.
"""

import argparse
import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gatecast.broadcast import Broadcast, InvalidBroadcast, decode
from gatecast.frames import MAX_FRAME_BYTES
from gatecast.printable import printable
from gatecast.publisher import is_fifo, queue_message
from worker.aws.errors import SDK_ERRORS, sdk_errors
from worker.aws.session import find_session
from worker.pipeline.dead_letters import TOO_LARGE
from worker.ports import DependencyError, MessageRejected
from worker.queue_check import is_same_queue
from worker.settings import ConfigurationError

REASONS: Final = ("undelivered", "rejected", "receives", "damaged")
"""The reasons that the worker gives for broadcasts that may succeed when they are sent again."""
_TOO_LARGE: Final = f"too_large: clients that use v2 would receive more than {MAX_FRAME_BYTES:,} bytes"
_BATCH: Final = 10
_VISIBILITY_SECONDS: Final = 600
"""How long handled messages stay invisible; those that were not sent are released at the end."""
_WAIT_SECONDS: Final = 1
"""A long poll queries all of the queue's servers, so an empty response means that the queue is empty."""


@dataclass
class Report:
    """The number of dead letters that were sent and skipped, by reason."""

    sent: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)

    def lines(self, *, dry_run: bool) -> list[str]:
        sent = "would be resent" if dry_run else "resent"
        return [
            f"{self.sent.total()} {sent}{_by_reason(self.sent)}",
            f"{self.skipped.total()} skipped{_by_reason(self.skipped)}",
        ]


def _by_reason(counts: Counter[str]) -> str:
    return f" ({', '.join(f'{reason}: {count}' for reason, count in sorted(counts.items()))})" if counts else ""


class Redrive:
    """`sqs` is the SDK's client. Every call raises what the SDK raises; unhandled messages stay where they are."""

    def __init__(
        self, sqs: Any, *, source: str, target: str, dry_run: bool, show: Callable[[str], None] = lambda _: None
    ) -> None:
        """`show` gets one line per message that was sent, would be sent, or was skipped."""
        self._sqs = sqs
        self._show = show
        self._source = source
        self._target = target
        self._dry_run = dry_run
        self._held: dict[str, str] = {}
        """Messages received and still on the dead-letter queue: the latest receipt handle by message id."""
        self._skipped: set[str] = set()
        """The ids of the messages that the report counts as skipped."""
        self.report = Report()

    async def run(self) -> None:
        """Run until every message on the dead-letter queue has been handled.

        On a FIFO queue a skipped message hides the messages behind it in its group while it is held. There, skipped
        messages are released and received again for as long as that yields messages to send.
        """
        while await self._run_once() and is_fifo(self._source) and not self._dry_run and self._skipped:
            pass

    async def _run_once(self) -> int:
        """Returns the number of messages sent."""
        sent_before = self.report.sent.total()
        try:
            while messages := await self._receive():
                await self._handle_all(messages)
        finally:
            await self._release_held()
        return self.report.sent.total() - sent_before

    async def _receive(self) -> Sequence[Mapping[str, Any]]:
        """At most ten messages that have not been handled yet."""
        response = await self._sqs.receive_message(
            QueueUrl=self._source,
            MaxNumberOfMessages=_BATCH,
            VisibilityTimeout=_VISIBILITY_SECONDS,
            WaitTimeSeconds=_WAIT_SECONDS,
            MessageAttributeNames=["reason"],
            MessageSystemAttributeNames=["SentTimestamp"],
        )
        messages = response.get("Messages", ())
        new = [message for message in messages if message["MessageId"] not in self._held]
        self._held |= {message["MessageId"]: message["ReceiptHandle"] for message in messages}
        return new

    async def _handle_all(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Concurrently, or in order if the queue is FIFO. Raises the first error when all have ended."""
        if is_fifo(self._target):
            for message in messages:
                await self._handle(message)
            return
        errors = await asyncio.gather(*map(self._handle, messages), return_exceptions=True)
        for error in errors:
            if error is not None:
                raise error

    async def _handle(self, message: Mapping[str, Any]) -> None:
        reason = message.get("MessageAttributes", {}).get("reason", {}).get("StringValue", "no reason")
        broadcast = _broadcast(message["Body"])
        if broadcast is None or reason not in REASONS:
            self._skip(message, _TOO_LARGE if reason == TOO_LARGE else reason)
        elif self._dry_run:
            self._count_sent(message, reason)
        else:
            await self._send(message, broadcast, reason)

    async def _send(self, message: Mapping[str, Any], broadcast: Broadcast, reason: str) -> None:
        """Send the broadcast; delete it from the dead-letter queue only once the other queue has accepted it."""
        entry = queue_message(broadcast, fifo=is_fifo(self._target), sending=message["MessageId"])
        try:
            with sdk_errors():
                await self._sqs.send_message(QueueUrl=self._target, **entry)
        except MessageRejected as rejected:
            self._skip(message, f"rejected, {rejected.code}")
            return
        await self._sqs.delete_message(QueueUrl=self._source, ReceiptHandle=message["ReceiptHandle"])
        del self._held[message["MessageId"]]
        self._count_sent(message, reason)

    def _count_sent(self, message: Mapping[str, Any], reason: str) -> None:
        self.report.sent[reason] += 1
        verb = "would be resent" if self._dry_run else "resent"
        self._show(f"{verb}: {reason}, {describe(message, now_ms=time.time() * 1000)}")

    def _skip(self, message: Mapping[str, Any], reason: str) -> None:
        if message["MessageId"] not in self._skipped:
            self._skipped.add(message["MessageId"])
            self.report.skipped[reason.partition(":")[0]] += 1
            described = describe(message, now_ms=time.time() * 1000)
            self._show(f"skipped: {reason}, {described}, message {message['MessageId']}")

    async def _release_held(self) -> None:
        """Make the remaining messages visible again immediately."""
        receipt_handles = list(self._held.values())
        self._held.clear()
        for start in range(0, len(receipt_handles), _BATCH):
            await self._sqs.change_message_visibility_batch(
                QueueUrl=self._source,
                Entries=[
                    {"Id": str(index), "ReceiptHandle": receipt_handle, "VisibilityTimeout": 0}
                    for index, receipt_handle in enumerate(receipt_handles[start : start + _BATCH])
                ],
            )


def describe(message: Mapping[str, Any], *, now_ms: float) -> str:
    """Whom it reaches, its id and part, and its age: everything but the payload. Of poison, only its age."""
    broadcast = _broadcast(message["Body"])
    sent_at_ms = message.get("Attributes", {}).get("SentTimestamp", now_ms)
    published_at_ms = int((broadcast and broadcast.published_at_ms) or sent_at_ms)
    age = f"{max(0.0, now_ms - published_at_ms) / 60_000:,.0f} min old"
    if broadcast is None:
        return age
    count = len(broadcast.connections or ())
    target = f"room {broadcast.room}" if broadcast.room else f"{count:,} connection{'s' * (count != 1)}"
    part = f", part {broadcast.part}" if broadcast.part else ""
    return f"{target}, id {broadcast.id}{part}, {age}"


def _broadcast(body: str) -> Broadcast | None:
    try:
        return decode(body)
    except InvalidBroadcast:
        return None


async def redrive(environ: Mapping[str, str], *, dry_run: bool) -> int:
    """Resend all dead letters and print what was done, or why not.

    Returns the exit code: 0 done, 1 the service failed, 2 the configuration is wrong.
    """
    try:
        source = _queue_url(environ, "GATECAST_DEAD_LETTER_QUEUE_URL")
        target = _queue_url(environ, "GATECAST_QUEUE_URL")
        _check_different(source, target)
        session = find_session(environ)
    except ConfigurationError as error:
        _print(str(error), error=True)
        return 2
    report, failure = Report(), None
    try:
        with sdk_errors():
            async with session.create_client("sqs") as sqs:
                redriver = Redrive(sqs, source=source, target=target, dry_run=dry_run, show=_print)
                report = redriver.report
                await redriver.run()
    except DependencyError as error:
        failure = error
    for line in report.lines(dry_run=dry_run):
        _print(line)
    if failure is not None:
        details = failure.__cause__ if isinstance(failure.__cause__, SDK_ERRORS) else failure
        _print(f"stopped by {failure.code}: {details}. It is safe to run it again.", error=True)
        return 1
    return 0


def _queue_url(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name, "")
    if not value.startswith(("http://", "https://")):
        raise ConfigurationError(f"{name} is {value!r}: expected the URL of an SQS queue")
    return value


def _check_different(source: str, target: str) -> None:
    if is_same_queue(source, target):
        raise ConfigurationError("GATECAST_DEAD_LETTER_QUEUE_URL and GATECAST_QUEUE_URL name the same queue")


def _print(line: str, *, error: bool = False) -> None:
    """Reasons and ids come from messages, and must not control the terminal."""
    print(printable(line), file=sys.stderr if error else sys.stdout, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m worker.redrive", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="print what would be resent, and send nothing")
    options = parser.parse_args(arguments)
    try:
        return asyncio.run(redrive(os.environ, dry_run=options.dry_run))
    except KeyboardInterrupt:
        _print("interrupted; it is safe to run it again", error=True)
        return 130


if __name__ == "__main__":
    sys.exit(main())
