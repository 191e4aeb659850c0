"""`python -m worker.redrive`: sends dead letters again. Each reaches the connections that missed it, and nobody else.

Reads GATECAST_DEAD_LETTER_QUEUE_URL, sends every broadcast that the worker put there to GATECAST_QUEUE_URL, and deletes
it only when SQS has accepted it. It may be interrupted and repeated: what is sent twice has the same id and part, which
makes the second a duplicate. Left alone are poison, and messages that SQS itself moved (no `reason`), because a person
should look at these first.

A FIFO queue that had the same broadcast within five minutes would swallow it, and then it would be nowhere. So the dead
letter's own message id goes into the deduplication id: one dead letter is stored once, each other one once more.
"""

import argparse
import asyncio
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gatecast.broadcast import Broadcast, InvalidBroadcast, decode
from gatecast.publisher import is_fifo, queue_message
from worker.aws.errors import sdk_errors
from worker.aws.session import find_session
from worker.ports import DependencyError, MessageRejected
from worker.settings import InvalidSettings

REASONS: Final = ("undelivered", "rejected", "receives", "damaged")
"""What the worker says of a broadcast that it gave up."""
_BATCH: Final = 10
_VISIBILITY_SECONDS: Final = 600
"""How long what has been looked at stays out of the way; what is not sent is put back at the end."""
_WAIT_SECONDS: Final = 1
"""A long poll asks all of a queue's servers, so an empty answer means an empty queue."""


@dataclass
class Report:
    """What became of the dead letters, by reason."""

    sent: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)

    def lines(self, *, dry_run: bool) -> list[str]:
        found = "would be sent again" if dry_run else "sent again"
        return [
            f"{self.sent.total()} {found}{_by_reason(self.sent)}",
            f"{self.left.total()} left alone{_by_reason(self.left)}",
        ]


def _by_reason(counts: Counter[str]) -> str:
    return f" ({', '.join(f'{reason}: {count}' for reason, count in sorted(counts.items()))})" if counts else ""


class Redrive:
    """`sqs` is the SDK's client. Every call raises what the SDK raises; what was not finished stays where it is."""

    def __init__(self, sqs: Any, *, source: str, target: str, dry_run: bool) -> None:
        self._sqs = sqs
        self._source = source
        self._target = target
        self._dry_run = dry_run
        self._held: dict[str, str] = {}
        """Received and still on the dead-letter queue: messages' ids, and the receipts of their latest receives."""
        self._left: set[str] = set()
        """The ids of those that the report counts as left alone."""
        self.report = Report()

    async def run(self) -> None:
        """Until the dead-letter queue holds nothing that has not been looked at.

        On a FIFO queue what is left alone hides what is behind it in its group as long as it is held. There it is put
        back and looked at again, as long as that brings up something to send.
        """
        while await self._run_once() and is_fifo(self._source) and not self._dry_run and self._left:
            pass

    async def _run_once(self) -> int:
        """How many were sent."""
        sent_before = self.report.sent.total()
        try:
            while messages := await self._receive():
                await self._handle_all(messages)
        finally:
            await self._put_back()
        return self.report.sent.total() - sent_before

    async def _receive(self) -> Sequence[Mapping[str, Any]]:
        """At most ten that have not been looked at."""
        answer = await self._sqs.receive_message(
            QueueUrl=self._source,
            MaxNumberOfMessages=_BATCH,
            VisibilityTimeout=_VISIBILITY_SECONDS,
            WaitTimeSeconds=_WAIT_SECONDS,
            MessageAttributeNames=["reason"],
        )
        messages = answer.get("Messages", ())
        new = [message for message in messages if message["MessageId"] not in self._held]
        self._held |= {message["MessageId"]: message["ReceiptHandle"] for message in messages}
        return new

    async def _handle_all(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Side by side, or in their order where the queue keeps one. Raises the first error when all have ended."""
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
        broadcast = _broadcast(message["Body"]) if reason in REASONS else None
        if broadcast is None:
            self._leave(message, reason.partition(":")[0])
        elif self._dry_run:
            self.report.sent[reason] += 1
        else:
            await self._send(message, broadcast, reason)

    async def _send(self, message: Mapping[str, Any], broadcast: Broadcast, reason: str) -> None:
        """Only what is on the broadcast queue is deleted from the other."""
        entry = queue_message(broadcast, fifo=is_fifo(self._target), sending=message["MessageId"])
        try:
            with sdk_errors():
                await self._sqs.send_message(QueueUrl=self._target, **entry)
        except MessageRejected as rejected:
            self._leave(message, f"rejected, {rejected.code}")
            return
        await self._sqs.delete_message(QueueUrl=self._source, ReceiptHandle=message["ReceiptHandle"])
        del self._held[message["MessageId"]]
        self.report.sent[reason] += 1

    def _leave(self, message: Mapping[str, Any], reason: str) -> None:
        if message["MessageId"] not in self._left:
            self._left.add(message["MessageId"])
            self.report.left[reason] += 1

    async def _put_back(self) -> None:
        """Make what stays visible at once, not only when its visibility ends."""
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


def _broadcast(body: str) -> Broadcast | None:
    try:
        return decode(body)
    except InvalidBroadcast:
        return None


async def redrive(environ: Mapping[str, str], *, dry_run: bool) -> int:
    """The exit code: 0 done, 1 the service failed, 2 the configuration is wrong. Prints what was done, or why not."""
    try:
        source = _queue_url(environ, "GATECAST_DEAD_LETTER_QUEUE_URL")
        target = _queue_url(environ, "GATECAST_QUEUE_URL")
        session = find_session(environ)
    except InvalidSettings as error:
        _say(str(error), error=True)
        return 2
    report, failure = Report(), None
    try:
        with sdk_errors():
            async with session.client("sqs") as sqs:
                work = Redrive(sqs, source=source, target=target, dry_run=dry_run)
                report = work.report
                await work.run()
    except DependencyError as error:
        failure = error
    for line in report.lines(dry_run=dry_run):
        _say(line)
    if failure is not None:
        _say(f"stopped by {failure.code}: {failure.__cause__ or failure}. It is safe to run it again.", error=True)
        return 1
    return 0


def _queue_url(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name, "")
    if not value.startswith(("http://", "https://")):
        raise InvalidSettings(f"{name} is {value!r}: it takes the URL of an SQS queue")
    return value


def _say(line: str, *, error: bool = False) -> None:
    print(line, file=sys.stderr if error else sys.stdout, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m worker.redrive", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="say what would be sent, and send nothing")
    options = parser.parse_args(arguments)
    try:
        return asyncio.run(redrive(os.environ, dry_run=options.dry_run))
    except KeyboardInterrupt:
        _say("interrupted; it is safe to run it again", error=True)
        return 130


if __name__ == "__main__":
    sys.exit(main())
