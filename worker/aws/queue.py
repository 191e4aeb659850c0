"""SQS: receive, delete, change visibility, send. Batch calls return a result per entry: they can fail in part."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from gatecast import tracing
from worker.aws.errors import ServiceError, reading_response, to_error
from worker.aws.json_service import JsonService
from worker.aws.session import LONG_POLL_SECONDS
from worker.ports import Message, NoResponse, PortError


class _Attribute(msgspec.Struct):
    value: str = msgspec.field(name="StringValue", default="")


class _Received(msgspec.Struct):
    id: str = msgspec.field(name="MessageId")
    receipt_handle: str = msgspec.field(name="ReceiptHandle")
    body: str = msgspec.field(name="Body", default="")
    attributes: dict[str, str] = msgspec.field(name="Attributes", default_factory=dict)
    message_attributes: dict[str, _Attribute] = msgspec.field(name="MessageAttributes", default_factory=dict)


class _ReceiveResponse(msgspec.Struct):
    messages: list[_Received] | None = msgspec.field(name="Messages", default=None)


class _Entry(msgspec.Struct):
    id: str = msgspec.field(name="Id")
    code: str = msgspec.field(name="Code", default="Unknown")


class _BatchResponse(msgspec.Struct):
    successful: list[_Entry] | None = msgspec.field(name="Successful", default=None)
    failed: list[_Entry] | None = msgspec.field(name="Failed", default=None)


class _Attributes(msgspec.Struct):
    attributes: dict[str, str] = msgspec.field(name="Attributes", default_factory=dict)


_receive_decoder: Final = msgspec.json.Decoder(_ReceiveResponse)
_batch_decoder: Final = msgspec.json.Decoder(_BatchResponse)
_attributes_decoder: Final = msgspec.json.Decoder(_Attributes)

_COUNTS: Final = {
    "visible": "ApproximateNumberOfMessages",
    "in_flight": "ApproximateNumberOfMessagesNotVisible",
    "delayed": "ApproximateNumberOfMessagesDelayed",
}


class Queue:
    """One queue. Every call raises what `JsonService` raises; batch calls return an error or None per entry."""

    def __init__(self, service: JsonService, url: str, wall_clock: Callable[[], float] = time.time) -> None:
        self._service = service
        self.url = url
        self._wall_clock = wall_clock

    async def receive(self, limit: int, *, visibility_seconds: int, wait: bool = True) -> list[Message]:
        """Receive at most `limit` (1 to 10) messages; if `wait`, wait up to LONG_POLL_SECONDS for the first."""
        request: dict[str, Any] = {
            "QueueUrl": self.url,
            "MaxNumberOfMessages": limit,
            "WaitTimeSeconds": LONG_POLL_SECONDS if wait else 0,
            "VisibilityTimeout": visibility_seconds,
            "MessageSystemAttributeNames": ["ApproximateReceiveCount", "SentTimestamp", "MessageGroupId"],
        }
        if tracing.enabled():
            request["MessageAttributeNames"] = list(tracing.ATTRIBUTES)
        body = await self._service.call("ReceiveMessage", msgspec.json.encode(request))
        now_ms = int(self._wall_clock() * 1000)
        with reading_response():
            return [_message(received, now_ms) for received in _receive_decoder.decode(body).messages or ()]

    async def count(self) -> dict[str, int]:
        """The approximate number of messages, by state: visible, in_flight, delayed."""
        counts = await self.attributes(*_COUNTS.values())
        with reading_response():
            return {state: int(counts[attribute]) for state, attribute in _COUNTS.items() if attribute in counts}

    async def attributes(self, *names: str) -> dict[str, str]:
        """These attributes of the queue; those that are not set are absent."""
        request = {"QueueUrl": self.url, "AttributeNames": names}
        body = await self._service.call("GetQueueAttributes", msgspec.json.encode(request))
        with reading_response():
            return _attributes_decoder.decode(body).attributes

    async def delete(self, receipt_handles: Sequence[str]) -> list[PortError | None]:
        """Delete messages: None for each that was deleted, otherwise its error."""
        return await self._batch(
            "DeleteMessageBatch", [{"ReceiptHandle": receipt_handle} for receipt_handle in receipt_handles]
        )

    async def change_visibility(self, receipt_handles: Sequence[str], seconds: int) -> list[PortError | None]:
        return await self._batch(
            "ChangeMessageVisibilityBatch",
            [{"ReceiptHandle": receipt_handle, "VisibilityTimeout": seconds} for receipt_handle in receipt_handles],
        )

    async def send(self, messages: Sequence[dict[str, Any]]) -> list[PortError | None]:
        """Send at most 10 messages, together at most MAX_BATCH_BYTES, each as SendMessage takes it."""
        try:
            return await self._batch("SendMessageBatch", messages)
        except ServiceError as error:
            raise to_error("SendMessageBatch", error.code) from None

    async def _batch(self, operation: str, entries: Sequence[dict[str, Any]]) -> list[PortError | None]:
        numbered = [{"Id": str(index), **entry} for index, entry in enumerate(entries)]
        request = {"QueueUrl": self.url, "Entries": numbered}
        body = await self._service.call(operation, msgspec.json.encode(request))
        outcomes: list[PortError | None] = [NoResponse("no result for this entry") for _ in entries]
        with reading_response():
            response = _batch_decoder.decode(body)
            for succeeded in response.successful or ():
                outcomes[int(succeeded.id)] = None
            for failed in response.failed or ():
                outcomes[int(failed.id)] = to_error(operation, failed.code)
        return outcomes


def _message(received: _Received, now_ms: int) -> Message:
    """Without SentTimestamp, which SQS always returns, it counts as sent now: any other time would be made up."""
    return Message(
        id=received.id,
        receipt_handle=received.receipt_handle,
        body=received.body,
        receive_count=int(received.attributes.get("ApproximateReceiveCount", "1")),
        sent_at_ms=int(received.attributes.get("SentTimestamp", now_ms)),
        group=received.attributes.get("MessageGroupId", ""),
        trace={name: attribute.value for name, attribute in received.message_attributes.items()},
    )
