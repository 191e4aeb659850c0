"""Both publishers on ministack: what arrives on the queue and in the bucket, whatever fails on the way."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any

import boto3
import pytest
from aiobotocore.session import get_session
from botocore.config import Config
from botocore.exceptions import ClientError, EndpointConnectionError

from gatecast import AsyncPublisher, Broadcast, InvalidBroadcast, Publication, Published, Publisher, decode
from gatecast.broadcast import MAX_DATA_BYTES
from local.processes import LOOPBACK, free_port
from local.resources import Queues

LARGE = "ü" * MAX_DATA_BYTES
_NO_RETRIES = {"retries": {"mode": "standard", "total_max_attempts": 1}}
Wrap = Callable[[Any], Any]


class Blocking:
    """A Publisher with boto3's clients, called as the asynchronous one is."""

    def __init__(self, queue_url: str, *, wrap: Wrap = lambda client: client, bucket: str | None = None) -> None:
        config = Config(**_NO_RETRIES)
        sqs = wrap(boto3.client("sqs", config=config))
        s3 = boto3.client("s3", config=config) if bucket else None
        self._publisher = Publisher(sqs, queue_url, s3=s3, bucket=bucket)

    async def publish(self, *arguments: Any, **fields: Any) -> str:
        return await asyncio.to_thread(self._publisher.publish, *arguments, **fields)

    async def publish_many(self, messages: Iterable[Broadcast | Publication], **options: Any) -> Published:
        return await asyncio.to_thread(self._publisher.publish_many, messages, **options)


AnyPublisher = Blocking | AsyncPublisher
Create = Callable[..., Any]


@pytest.fixture(params=["boto3", "aiobotocore"])
async def create(request: pytest.FixtureRequest, aws: dict[str, str]) -> AsyncIterator[Create]:
    """Creates a publisher for a queue; `wrap` replaces its client of SQS, `bucket` gives it one of S3."""
    async with AsyncExitStack() as clients:

        async def asynchronous(
            queue_url: str, *, wrap: Wrap = lambda client: client, bucket: str | None = None
        ) -> AsyncPublisher:
            session = get_session()
            options = {"region_name": aws["AWS_REGION"], "config": None}
            sqs = wrap(await clients.enter_async_context(session.create_client("sqs", **options)))
            s3 = await clients.enter_async_context(session.create_client("s3", **options)) if bucket else None
            return AsyncPublisher(sqs, queue_url, s3=s3, bucket=bucket)

        async def blocking(queue_url: str, **options: Any) -> Blocking:
            return Blocking(queue_url, **options)

        yield blocking if request.param == "boto3" else asynchronous


def received(sqs: Any, url: str) -> list[dict[str, Any]]:
    """All messages, in the order in which the queue returns them, and deleted."""
    found: list[dict[str, Any]] = []
    while messages := sqs.receive_message(
        QueueUrl=url, MaxNumberOfMessages=10, MessageSystemAttributeNames=["All"]
    ).get("Messages"):
        for message in messages:
            sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        found += messages
    return found


def ids(messages: Iterable[dict[str, Any]]) -> list[str]:
    return [decode(message["Body"]).id for message in messages]


class Flaky:
    """A client whose batch calls fail: an entry of every second one, and the response of every fourth one is lost."""

    def __init__(self, client: Any, *, asynchronous: bool) -> None:
        self._client = client
        self._asynchronous = asynchronous
        self.batches: list[list[str]] = []

    def send_message_batch(self, **arguments: Any) -> Any:
        return self._send_async(arguments) if self._asynchronous else self._send(arguments)

    def _send(self, arguments: dict[str, Any]) -> Any:
        failing, arguments["Entries"] = self._split(arguments["Entries"])
        response = self._client.send_message_batch(**arguments) if arguments["Entries"] else {}
        return self._result(failing, response)

    async def _send_async(self, arguments: dict[str, Any]) -> Any:
        failing, arguments["Entries"] = self._split(arguments["Entries"])
        response = await self._client.send_message_batch(**arguments) if arguments["Entries"] else {}
        return self._result(failing, response)

    def _split(self, entries: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Those that fail, and those that do not: in each odd call the first entry fails."""
        self.batches.append([decode(entry["MessageBody"]).id for entry in entries])
        failing = 1 if len(self.batches) % 2 else 0
        return entries[:failing], entries[failing:]

    def _result(self, failing: list[dict[str, Any]], response: Any) -> Any:
        if len(self.batches) % 4 == 0:
            raise EndpointConnectionError(endpoint_url="lost")  # it has taken effect
        failed = [{"Id": each["Id"], "Code": "InternalError", "SenderFault": False} for each in failing]
        return {**response, "Failed": [*response.get("Failed", []), *failed]}


def flaky(create: Create, made: list[Flaky]) -> Wrap:
    def wrap(client: Any) -> Flaky:
        made.append(Flaky(client, asynchronous=create.__name__ == "asynchronous"))
        return made[-1]

    return wrap


async def test_one_message_arrives_as_it_was_published(create: Create, sqs: Any, queues: Queues) -> None:
    publisher = await create(queues.url)
    assert await publisher.publish(user="ann", json={"price": 12.5}, id="42") == "42"
    made = await publisher.publish(Broadcast(id="43", room="hall", data="x"))
    (first, second) = sorted(received(sqs, queues.url), key=lambda each: decode(each["Body"]).id)
    assert decode(first["Body"]).room == first["Attributes"]["MessageGroupId"] == "@user/ann"
    assert abs(int(first["Attributes"]["SentTimestamp"]) - int(decode(first["Body"]).published_at_ms or 0)) < 60_000
    assert (made, decode(second["Body"])) == ("43", Broadcast(id="43", room="hall", data="x"))


async def test_errors_of_the_client_and_invalid_messages_are_raised(create: Create, sqs: Any, queues: Queues) -> None:
    with pytest.raises(ClientError, match=r"NonExistentQueue|QueueDoesNotExist"):
        await (await create(f"{queues.url}-other")).publish(room="lobby", data="x")
    publisher = await create(queues.url)
    with pytest.raises(InvalidBroadcast, match="create the publisher with `s3` and `bucket`"):
        await publisher.publish(room="lobby", data=LARGE)
    with pytest.raises(TypeError, match="got both: room"):
        await publisher.publish(Broadcast(id="1", room="a", data="x"), room="b")
    with pytest.raises(TypeError, match="the field is `delay`"):
        await publisher.publish(room="a", data="x", delay_seconds=5)
    assert received(sqs, queues.url) == []


async def test_many_are_accepted_and_the_delayed_one_is_delayed(create: Create, sqs: Any, queues: Queues) -> None:
    names = [str(number) for number in range(25)]
    messages = [Publication(room="lobby", data="x" * 100_000, id=name) for name in names]
    late = Publication(room="lobby", data="late", id="late", delay=900)
    result = await (await create(queues.url)).publish_many([*messages, late])
    assert result == ([*names, "late"], [])
    assert sorted(ids(received(sqs, queues.url)), key=int) == names
    counts = sqs.get_queue_attributes(QueueUrl=queues.url, AttributeNames=["All"])["Attributes"]
    assert counts["ApproximateNumberOfMessagesDelayed"] == "1"


async def test_on_a_standard_queue_only_what_failed_is_sent_again(create: Create, sqs: Any, queues: Queues) -> None:
    made: list[Flaky] = []
    publisher = await create(queues.url, wrap=flaky(create, made))
    names = [str(number) for number in range(23)]
    result = await publisher.publish_many(Publication(room="lobby", data="x", id=name) for name in names)
    assert result == (names, [])
    arrived = ids(received(sqs, queues.url))
    assert set(arrived) == set(names)
    lost = [name for batch in made[0].batches[3::4] for name in batch]
    assert sorted(arrived) == sorted([*names, *lost]), "twice only those whose response was lost"


async def test_on_a_fifo_queue_each_room_keeps_its_order(create: Create, sqs: Any, fifo_queues: Queues) -> None:
    made: list[Flaky] = []
    publisher = await create(fifo_queues.url, wrap=flaky(create, made))
    messages = [Publication(room=f"room-{number % 3}", data="x", id=str(number)) for number in range(12)]
    result = await publisher.publish_many(messages)
    assert result == ([str(number) for number in range(12)], [])
    arrived = [int(name) for name in ids(received(sqs, fifo_queues.url))]
    assert sorted(arrived) == list(range(12)), "the queue deduplicates what was sent twice"
    for room in range(3):
        assert [number for number in arrived if number % 3 == room] == list(range(room, 12, 3))
    assert all(len({int(name) % 3 for name in batch}) == len(batch) for batch in made[0].batches)


async def test_a_missing_queue_is_named_for_every_message(create: Create, queues: Queues) -> None:
    publisher = await create(f"{queues.url}-other")
    result = await publisher.publish_many(Publication(room="lobby", data="x", id=str(number)) for number in range(15))
    assert result.accepted == []
    assert [each.id for each in result.failed] == [str(number) for number in range(15)]
    assert all("Queue" in each.code for each in result.failed)


@pytest.mark.usefixtures("aws")
async def test_a_queue_that_cannot_be_reached_is_retried_and_named() -> None:
    endpoint = f"http://{LOOPBACK}:{free_port()}"
    publisher = Publisher(boto3.client("sqs", endpoint_url=endpoint, config=Config(**_NO_RETRIES)), f"{endpoint}/1/q")
    result = publisher.publish_many([Publication(room="lobby", data="x", id="1")], retry_seconds=0.2)
    assert [(each.id, each.code) for each in result.failed] == [("1", "EndpointConnectionError")]


async def test_messages_may_be_asynchronous(aws: dict[str, str], sqs: Any, queues: Queues) -> None:
    async def messages() -> AsyncIterator[Publication]:
        for number in range(12):
            await asyncio.sleep(0)
            yield Publication(room="lobby", data="x", id=str(number))

    async with get_session().create_client("sqs", region_name=aws["AWS_REGION"]) as client:
        result = await AsyncPublisher(client, queues.url).publish_many(messages())
    assert len(result.accepted) == 12
    assert len(received(sqs, queues.url)) == 12


async def test_a_large_payload_is_in_the_bucket_before_its_message_is_on_the_queue(
    create: Create, sqs: Any, s3: Any, queues: Queues, payload_bucket: str
) -> None:
    publisher = await create(queues.url, bucket=payload_bucket)
    for _ in range(2):
        assert await publisher.publish(room="lobby", data=LARGE, id="42") == "42"
    await publisher.publish_many([Publication(room="../lobby", payload=b"\x89PNG", content_type="image/png", id="43")])
    objects = s3.list_objects_v2(Bucket=payload_bucket)["Contents"]
    assert len(objects) == 2, "a retry stores the same object"
    references = {}
    for message in received(sqs, queues.url):
        broadcast = decode(message["Body"])
        assert broadcast.reference
        references[broadcast.id] = broadcast.reference
        stored = s3.get_object(Bucket=broadcast.reference.bucket, Key=broadcast.reference.key)
        assert stored["ContentType"] == broadcast.reference.content_type
        content = stored["Body"].read()
        assert len(content) == broadcast.reference.bytes
        assert content == (LARGE.encode() if broadcast.id == "42" else b"\x89PNG")
    assert {each["Key"] for each in objects} == {each.key for each in references.values()}
    assert sorted(references) == ["42", "43"]


async def test_without_its_object_no_message_is_sent(create: Create, sqs: Any, queues: Queues) -> None:
    publisher = await create(queues.url, bucket="no-such-bucket")
    with pytest.raises(ClientError, match="NoSuchBucket"):
        await publisher.publish(room="lobby", data=LARGE)
    result = await publisher.publish_many(
        [
            Publication(room="lobby", data=LARGE, id="1"),
            Publication(room="lobby", data="small", id="2"),
        ]
    )
    assert result.accepted == ["2"]
    assert [(each.id, each.code) for each in result.failed] == [("1", "NoSuchBucket")]
    assert ids(received(sqs, queues.url)) == ["2"]


async def test_a_client_of_the_other_kind_is_rejected(aws: dict[str, str], sqs: Any, queues: Queues) -> None:
    async with get_session().create_client("sqs", region_name=aws["AWS_REGION"]) as client:
        publisher = Publisher(client, queues.url)
        with pytest.raises(TypeError, match="expected one of boto3, or use AsyncPublisher"):
            publisher.publish(room="lobby", data="x")
        with pytest.raises(TypeError, match="expected one of boto3, or use AsyncPublisher"):
            publisher.publish_many([Publication(room="lobby", data="x")])
    assert received(sqs, queues.url) == []


@pytest.mark.parametrize("options", [{"bucket": "payloads"}, {"s3": object()}])
def test_a_bucket_and_its_client_belong_together(options: dict[str, Any]) -> None:
    for publisher in (Publisher, AsyncPublisher):
        with pytest.raises(ValueError, match="s3 and bucket: expected both"):
            publisher(object(), "https://q", **options)
