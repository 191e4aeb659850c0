"""SQS: receive, delete, change visibility, send. Batches respond entry by entry, because they can fail in part."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from gatecast import tracing
from worker.aws.json_service import JsonService
from worker.aws.session import LONG_POLL_SECONDS
from worker.ports import Message


class _Attribute(msgspec.Struct):
    value: str = msgspec.field(name="StringValue", default="")


class _Received(msgspec.Struct):
    id: str = msgspec.field(name="MessageId")
    receipt: str = msgspec.field(name="ReceiptHandle")
    body: str = msgspec.field(name="Body", default="")
    attributes: dict[str, str] = msgspec.field(name="Attributes", default_factory=dict)
    message_attributes: dict[str, _Attribute] = msgspec.field(name="MessageAttributes", default_factory=dict)


class _ReceiveAnswer(msgspec.Struct):
    messages: list[_Received] | None = msgspec.field(name="Messages", default=None)


class _Entry(msgspec.Struct):
    id: str = msgspec.field(name="Id")
    code: str = msgspec.field(name="Code", default="Unknown")


class _BatchAnswer(msgspec.Struct):
    successful: list[_Entry] | None = msgspec.field(name="Successful", default=None)
    failed: list[_Entry] | None = msgspec.field(name="Failed", default=None)


class _Attributes(msgspec.Struct):
    attributes: dict[str, str] = msgspec.field(name="Attributes", default_factory=dict)


_receive_decoder: Final = msgspec.json.Decoder(_ReceiveAnswer)
_batch_decoder: Final = msgspec.json.Decoder(_BatchAnswer)
_attributes_decoder: Final = msgspec.json.Decoder(_Attributes)

_COUNTS: Final = {
    "visible": "ApproximateNumberOfMessages",
    "in_flight": "ApproximateNumberOfMessagesNotVisible",
    "delayed": "ApproximateNumberOfMessagesDelayed",
}


class Queue:
    """One queue. Every call raises what `JsonService` raises; batches return an error code per entry."""

    def __init__(self, service: JsonService, url: str) -> None:
        self._service = service
        self.url = url

    async def receive(self, most: int, *, visibility_seconds: int, wait: bool = True) -> list[Message]:
        """At most `most` (1 to 10) messages; waits LONG_POLL_SECONDS for the first if `wait`."""
        request: dict[str, Any] = {
            "QueueUrl": self.url,
            "MaxNumberOfMessages": most,
            "WaitTimeSeconds": LONG_POLL_SECONDS if wait else 0,
            "VisibilityTimeout": visibility_seconds,
            "MessageSystemAttributeNames": ["ApproximateReceiveCount", "SentTimestamp", "MessageGroupId"],
        }
        if tracing.enabled():
            request["MessageAttributeNames"] = list(tracing.ATTRIBUTES)
        answer = _receive_decoder.decode(await self._service.call("ReceiveMessage", msgspec.json.encode(request)))
        return [_message(received) for received in answer.messages or ()]

    async def count(self) -> dict[str, int]:
        """About how many messages there are: visible, in_flight, delayed."""
        request = {"QueueUrl": self.url, "AttributeNames": list(_COUNTS.values())}
        response = await self._service.call("GetQueueAttributes", msgspec.json.encode(request))
        counts = _attributes_decoder.decode(response).attributes
        return {state: int(counts[attribute]) for state, attribute in _COUNTS.items() if attribute in counts}

    async def delete(self, receipts: Sequence[str]) -> list[str | None]:
        """None for each that is deleted, else the code of its error."""
        return await self._batch("DeleteMessageBatch", [{"ReceiptHandle": receipt} for receipt in receipts])

    async def change_visibility(self, receipts: Sequence[str], seconds: int) -> list[str | None]:
        return await self._batch(
            "ChangeMessageVisibilityBatch",
            [{"ReceiptHandle": receipt, "VisibilityTimeout": seconds} for receipt in receipts],
        )

    async def send(self, messages: Sequence[dict[str, Any]]) -> list[str | None]:
        """At most 10 messages, at most MAX_BATCH_BYTES together, each as SendMessage takes it."""
        return await self._batch("SendMessageBatch", messages)

    async def _batch(self, operation: str, entries: Sequence[dict[str, Any]]) -> list[str | None]:
        numbered = [{"Id": str(index), **entry} for index, entry in enumerate(entries)]
        request = {"QueueUrl": self.url, "Entries": numbered}
        response = await self._service.call(operation, msgspec.json.encode(request))
        return _outcomes(_batch_decoder.decode(response), len(entries))


def _outcomes(answer: _BatchAnswer, entries: int) -> list[str | None]:
    outcomes: list[str | None] = ["Unanswered"] * entries
    for succeeded in answer.successful or ():
        outcomes[int(succeeded.id)] = None
    for failed in answer.failed or ():
        outcomes[int(failed.id)] = failed.code
    return outcomes


def _message(received: _Received) -> Message:
    return Message(
        id=received.id,
        receipt=received.receipt,
        body=received.body,
        receives=int(received.attributes.get("ApproximateReceiveCount", "1")),
        sent_at_ms=int(received.attributes.get("SentTimestamp", "0")),
        group=received.attributes.get("MessageGroupId", ""),
        trace={name: attribute.value for name, attribute in received.message_attributes.items()},
    )
