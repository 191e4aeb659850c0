"""The dead-letter queue, through a boto3 client: reading it, sending its broadcasts again, and deleting from it.

SQS has no way to look at a message without receiving it. So what is read is invisible to others for a time, and is
released at the end. A process that is killed in between loses nothing: after ten minutes all is visible again.

Redrive sends each broadcast that the worker put there to the other queue, and deletes it only when SQS has accepted it.
It may be interrupted and repeated: a broadcast that is sent twice has the same id and part, so the second one is a
duplicate. Poison messages, messages that SQS itself moved (no `reason`), and broadcasts whose frame is too large to be
posted are skipped, because a person should look at these first. A broadcast whose payload in S3 still cannot be
delivered comes back, and is not sent a second time.

A FIFO queue that received the same broadcast within five minutes would drop it as a duplicate, and it would be lost.
Therefore the deduplication id includes the dead letter's own message id: a dead letter that is sent twice is stored
once, and another dead letter of the same broadcast is stored as well.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Final

from botocore.exceptions import ClientError

from gatecast.broadcast import InvalidBroadcast
from gatecast.dead_letters import PAYLOAD_REASONS, DeadLetter, word_of
from gatecast.publisher import is_fifo, queue_message

_BATCH: Final = 10
_VISIBILITY_SECONDS: Final = 600
"""How long messages that were read stay invisible; those that were not deleted are released at the end."""
_WAIT_SECONDS: Final = 1
"""A long poll queries all of the queue's servers, so an empty response means that the queue is empty."""
_REJECTED: Final = ("BatchRequestTooLong", "InvalidMessageContents", "InvalidParameterValue")
"""In codes that say that SQS rejects the message itself. Source: API reference of SendMessage."""


class DeadLetterQueue:
    """`sqs` is a boto3 client. Every call raises what it raises; unhandled messages stay where they are."""

    def __init__(self, sqs: Any, url: str) -> None:
        self._sqs = sqs
        self._url = url
        self._held: dict[str, str] = {}
        """Messages received and still on the queue: the latest receipt handle by message id."""

    @property
    def fifo(self) -> bool:
        return is_fifo(self._url)

    def read(self) -> Generator[list[DeadLetter]]:
        """Each message once, in batches of at most ten. Close the iterator: then all that were not deleted are visible.

        On a FIFO queue, messages that are not deleted hide those behind the first ten of their group.
        """
        try:
            while letters := self._receive():
                yield letters
        finally:
            self._release()

    def delete(self, letter: DeadLetter) -> None:
        """Thread-safe."""
        self._sqs.delete_message(QueueUrl=self._url, ReceiptHandle=letter.receipt_handle)
        self._held.pop(letter.message_id, None)

    def _receive(self) -> list[DeadLetter]:
        """At most ten messages that have not been received yet."""
        response = self._sqs.receive_message(
            QueueUrl=self._url,
            MaxNumberOfMessages=_BATCH,
            VisibilityTimeout=_VISIBILITY_SECONDS,
            WaitTimeSeconds=_WAIT_SECONDS,
            MessageAttributeNames=["reason"],
            MessageSystemAttributeNames=["SentTimestamp"],
        )
        letters = [DeadLetter.from_message(message) for message in response.get("Messages", ())]
        new = [letter for letter in letters if letter.message_id not in self._held]
        self._held |= {letter.message_id: letter.receipt_handle for letter in letters}
        return new

    def _release(self) -> None:
        """Make the remaining messages visible again immediately."""
        receipt_handles = list(self._held.values())
        self._held.clear()
        for start in range(0, len(receipt_handles), _BATCH):
            self._sqs.change_message_visibility_batch(
                QueueUrl=self._url,
                Entries=[
                    {"Id": str(index), "ReceiptHandle": receipt_handle, "VisibilityTimeout": 0}
                    for index, receipt_handle in enumerate(receipt_handles[start : start + _BATCH])
                ],
            )


def drop(queue: DeadLetterQueue, is_chosen: Callable[[DeadLetter], bool], on_drop: Callable[[DeadLetter], None]) -> int:
    """Deletes the dead letters that are chosen, and returns their number. Calls `on_drop` with each, once deleted."""
    dropped = 0
    while True:
        before, kept = dropped, False
        with closing(queue.read()) as batches:
            for letter in (letter for letters in batches for letter in letters):
                if not is_chosen(letter):
                    kept = True
                    continue
                queue.delete(letter)
                dropped += 1
                on_drop(letter)
        if not (queue.fifo and kept and dropped > before):
            return dropped


@dataclass
class Report:
    """The number of dead letters that were sent and skipped, by the word of their reason."""

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
    """Sends the broadcasts of the dead-letter queue `source` to the queue `target`; both are URLs, and must differ.

    `sqs` is a boto3 client. `only` are ids of messages; others are left alone. `show` gets one line per message that
    was sent, would be sent, or was skipped: its texts are those of others, and not safe for a terminal.
    """

    def __init__(
        self,
        sqs: Any,
        *,
        source: str,
        target: str,
        dry_run: bool = False,
        only: Collection[str] | None = None,
        show: Callable[[str], object] = lambda _line: None,
    ) -> None:
        self._sqs = sqs
        self._queue = DeadLetterQueue(sqs, source)
        self._target = target
        self._dry_run = dry_run
        self._only = only
        self._show = show
        self._payloads_sent: set[tuple[str, str, str] | None] = set()
        """The identities of broadcasts that were sent although their payload could not be delivered before."""
        self._skipped: set[str] = set()
        """The ids of the messages that the report counts as skipped."""
        self._some_stay = False
        """Whether messages that stay on the queue may hide others."""
        self.report = Report()

    def run(self) -> Report:
        """Run until every message on the dead-letter queue has been handled. Raises what the client raises.

        On a FIFO queue a message that stays hides the messages behind it in its group while it is held. There, these
        are released and received again for as long as that yields messages to send.
        """
        with ThreadPoolExecutor(_BATCH) as pool:
            while self._run_once(pool) and self._queue.fifo and not self._dry_run and self._some_stay:
                pass
        return self.report

    def _run_once(self, pool: ThreadPoolExecutor) -> int:
        """Returns the number of messages sent."""
        sent_before = self.report.sent.total()
        with closing(self._queue.read()) as batches:
            for letters in batches:
                self._handle_all(letters, pool)
        return self.report.sent.total() - sent_before

    def _handle_all(self, letters: Sequence[DeadLetter], pool: ThreadPoolExecutor) -> None:
        """Concurrently, or in order if the queue is FIFO. Raises the first error when all have ended."""
        chosen = [letter for letter in letters if self._is_sent(letter)]
        if is_fifo(self._target):
            for letter in chosen:
                self._count(letter, self._resend(letter))
            return
        calls = {pool.submit(self._resend, letter): letter for letter in chosen}
        try:
            wait(calls)
        finally:
            errors = [*self._count_all(calls)]
        for error in errors:
            raise error

    def _count_all(self, calls: dict[Future[str | None], DeadLetter]) -> Iterator[BaseException]:
        """Counts what was done, and yields the errors. If it was interrupted, what has begun is finished first."""
        for call in calls:
            call.cancel()
        wait(calls)
        for call, letter in calls.items():
            if call.cancelled():
                continue
            if (error := call.exception()) is not None:
                yield error
            else:
                self._count(letter, call.result())

    def _is_sent(self, letter: DeadLetter) -> bool:
        """Whether it shall be sent. Counts the others."""
        if self._only is not None and letter.message_id not in self._only:
            self._some_stay = True
            return False
        if why := letter.why_not_resent():
            self._skip(letter, why)
            return False
        if letter.identity in self._payloads_sent:
            self._skip(letter, f"{letter.reason}, again: the cause still exists")
            return False
        if self._dry_run:
            self._count(letter, None)
            return False
        if letter.word in PAYLOAD_REASONS:
            self._payloads_sent.add(letter.identity)
        return True

    def _resend(self, letter: DeadLetter) -> str | None:
        """Send the broadcast; delete it from the dead-letter queue only once the other queue has accepted it.

        Returns why it was skipped; None if it was sent.
        """
        assert letter.broadcast is not None  # noqa: S101 - it would have been skipped
        try:
            entry = queue_message(letter.broadcast, fifo=is_fifo(self._target), sending=letter.message_id)
            self._sqs.send_message(QueueUrl=self._target, **entry)
        except InvalidBroadcast as invalid:
            return f"rejected, {invalid}"
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if not any(each in code for each in _REJECTED):
                raise
            return f"rejected, {code}"
        self._queue.delete(letter)
        return None

    def _count(self, letter: DeadLetter, why_skipped: str | None) -> None:
        if why_skipped is not None:
            self._skip(letter, why_skipped)
            return
        self.report.sent[letter.word] += 1
        verb = "would be resent" if self._dry_run else "resent"
        self._show(f"{verb}: {letter.reason}, {letter.describe(now_ms=time.time() * 1000)}")

    def _skip(self, letter: DeadLetter, reason: str) -> None:
        self._some_stay = True
        if letter.message_id not in self._skipped:
            self._skipped.add(letter.message_id)
            self.report.skipped[word_of(reason)] += 1
            described = letter.describe(now_ms=time.time() * 1000)
            self._show(f"skipped: {reason}, {described}, message {letter.message_id}")
