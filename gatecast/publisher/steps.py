"""The steps of publishing, for a blocking and an asynchronous driver.

What publishes is a generator. It yields a step and receives its result, or has the step's error raised at the yield; it
returns what the publisher returns. So the decisions exist once, and tests need neither a network nor time.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, TypeVar

from gatecast.publisher.publication import Prepared

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """Call this method of the SDK's client with these arguments. Its result is the response."""

    service: Literal["sqs", "s3"]
    method: Literal["send_message", "send_message_batch", "put_object"]
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sleep:
    seconds: float


@dataclass(frozen=True, slots=True)
class Next:
    """Take the next of the messages to publish. Its result is END if there is none."""


END: Final = object()

Steps: TypeAlias = Generator[Call | Sleep | Next, Any, T]


def publish_one(queue_url: str, message: Prepared) -> Steps[str]:
    """Returns the message's id. Errors pass through.

    The object comes first: if the process dies in between, it refers to nothing, and nothing refers to it.
    """
    if message.upload is not None:
        yield Call("s3", "put_object", message.upload)
    yield Call("sqs", "send_message", {"QueueUrl": queue_url, **message.message})
    return message.id
