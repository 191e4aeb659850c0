"""SQS: receive, delete, change visibility, send. Batches answer entry by entry, because they can fail in part."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from worker.aws.session import LONG_POLL_SECONDS

MAX_BATCH: Final = 10
MAX_BATCH_BYTES: Final = 1024 * 1024
MAX_DELAY_SECONDS: Final = 900


@dataclass(frozen=True, slots=True)
class Message:
    """One receive of one message."""

    id: str
    receipt: str
    body: str
    receives: int
    sent_at_ms: int
    group: str


class Queue:
    """One queue. Every call raises what the SDK raises; what batches answer is an error code an entry, or None."""

    def __init__(self, client: Any, url: str) -> None:
        self._client = client
        self.url = url

    async def receive(self, most: int, *, visibility_seconds: int, wait: bool = True) -> list[Message]:
        """At most `most` (1 to 10) messages; waits LONG_POLL_SECONDS for the first if `wait`."""
        answer = await self._client.receive_message(
            QueueUrl=self.url,
            MaxNumberOfMessages=most,
            WaitTimeSeconds=LONG_POLL_SECONDS if wait else 0,
            VisibilityTimeout=visibility_seconds,
            MessageSystemAttributeNames=["ApproximateReceiveCount", "SentTimestamp", "MessageGroupId"],
        )
        return [_message(received) for received in answer.get("Messages", ())]

    async def delete(self, receipts: Sequence[str]) -> list[str | None]:
        return await self._batch(
            self._client.delete_message_batch, [{"ReceiptHandle": receipt} for receipt in receipts]
        )

    async def change_visibility(self, receipts: Sequence[str], seconds: int) -> list[str | None]:
        return await self._batch(
            self._client.change_message_visibility_batch,
            [{"ReceiptHandle": receipt, "VisibilityTimeout": seconds} for receipt in receipts],
        )

    async def send(self, messages: Sequence[dict[str, Any]]) -> list[str | None]:
        """At most 10 messages, at most MAX_BATCH_BYTES together, each as SendMessage takes it."""
        return await self._batch(self._client.send_message_batch, messages)

    async def _batch(self, call: Any, entries: Sequence[dict[str, Any]]) -> list[str | None]:
        answer = await call(
            QueueUrl=self.url, Entries=[{"Id": str(index), **entry} for index, entry in enumerate(entries)]
        )
        outcomes: list[str | None] = ["Unanswered"] * len(entries)
        for succeeded in answer.get("Successful", ()):
            outcomes[int(succeeded["Id"])] = None
        for failed in answer.get("Failed", ()):
            outcomes[int(failed["Id"])] = str(failed.get("Code", "Unknown"))
        return outcomes


def _message(received: dict[str, Any]) -> Message:
    attributes = received.get("Attributes", {})
    return Message(
        id=received["MessageId"],
        receipt=received["ReceiptHandle"],
        body=received.get("Body", ""),
        receives=int(attributes.get("ApproximateReceiveCount", "1")),
        sent_at_ms=int(attributes.get("SentTimestamp", "0")),
        group=attributes.get("MessageGroupId", ""),
    )
