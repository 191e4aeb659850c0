"""Messages of a history whose payload is an object in S3: each response has links of its own."""

import io
from collections.abc import Iterator
from typing import Any

import boto3
import msgspec
import pytest
from botocore.config import Config
from botocore.exceptions import NoCredentialsError

from gatecast.broadcast import Reference
from gatecast.frames import Message
from gatecast.references import LINK_SECONDS
from gatecast.rooms.backoff import Backoff
from routes.history import History, Recovery
from routes.joins import Position
from routes.payloads import Payloads
from routes.runs import MAX_RESPONSE_BYTES
from routes.streams import Streams
from tests.memory_payloads import BUCKET, reference_to
from tests.routes_events import captured_log
from tests.stream_table import StreamTable

NOW = 1_700_000_000.5


class FakeS3:
    """Signs with a counter, so that no two URLs are equal."""

    def __init__(self, filler: int = 0) -> None:
        self.calls: list[dict[str, Any]] = []
        self.failure: Exception | None = None
        self._filler = "x" * filler

    def generate_presigned_url(self, operation: str, **arguments: Any) -> str:
        assert operation == "get_object"
        if self.failure:
            raise self.failure
        self.calls.append(arguments)
        return f"https://s3/{arguments['Params']['Key']}?{len(self.calls)}{self._filler}"


@pytest.fixture
def stream() -> StreamTable:
    return StreamTable(NOW)


@pytest.fixture(autouse=True)
def log() -> Iterator[io.StringIO]:
    with captured_log() as log:
        yield log


def history(
    stream: StreamTable, s3: FakeS3, bucket: str | None = BUCKET, credentials_end: float | None = None
) -> History:
    payloads = Payloads(bucket, lambda: s3, credentials_expire_at=lambda: credentials_end, clock=stream.clock)
    streams = Streams(stream, "gatecast", Backoff(sleep=lambda _: None), stream.clock)
    return History(streams, clock=stream.clock, payloads=payloads)


def messages(recovery: Recovery) -> list[Message]:
    return [msgspec.json.decode(each, type=Message) for each in recovery.messages]


def append(stream: StreamTable, key: str = "a", **fields: Any) -> int:
    return stream.append("room", reference=reference_to(key, 1_000_000), **fields)


def test_each_response_has_a_link_of_its_own_although_entries_are_in_memory(stream: StreamTable) -> None:
    s3 = FakeS3()
    subject = history(stream, s3)
    since = stream.append("room")
    offset = append(stream)
    first, second = (messages(subject.read("room", since, 10)) for _ in range(2))
    assert [each.reference and each.reference.url for each in first + second] == ["https://s3/a?1", "https://s3/a?2"]
    link = first[0].reference
    assert link
    assert (link.bytes, link.content_type) == (1_000_000, "text/plain; charset=utf-8")
    assert link.expires_at_ms == (int(NOW) + LINK_SECONDS) * 1000
    assert (first[0].offset, first[0].data) == (offset, msgspec.UNSET)
    assert b"bucket" not in bytes(subject.read("room", since, 10).messages[0]), "where the object is remains ours"
    assert stream.calls.count("Query") == 1
    assert s3.calls[0] == {"Params": {"Bucket": BUCKET, "Key": "a"}, "ExpiresIn": LINK_SECONDS}


def test_a_link_ends_with_its_message_or_with_the_credentials(stream: StreamTable) -> None:
    since = stream.append("room")
    append(stream, expires_at_ms=int(NOW * 1000) + 90_000)
    for credentials_end, seconds in ((None, 90), (NOW + 60, 60)):
        s3 = FakeS3()
        [message] = messages(history(stream, s3, credentials_end=credentials_end).read("room", since, 10))
        assert s3.calls[0]["ExpiresIn"] == seconds
        assert message.reference
        assert message.reference.expires_at_ms == (int(NOW) + seconds) * 1000


def test_links_count_towards_the_length_of_a_response(stream: StreamTable) -> None:
    subject = history(stream, FakeS3(filler=2_000))
    since = stream.append("room")
    offsets = [append(stream) for _ in range(100)]
    read: list[int] = []
    responses = 0
    while not read or read[-1] != offsets[-1]:
        recovery = subject.resume({"room": Position(since=read[-1] if read else since)}, 1)["room"]
        assert recovery.recovered
        assert len(msgspec.json.encode(recovery.fields())) < MAX_RESPONSE_BYTES
        read += [int(each.offset or 0) for each in messages(recovery)]
        responses += 1
    assert (read, responses) == (offsets, 3)


@pytest.mark.parametrize(
    ("bucket", "reference", "reason"),
    [
        (BUCKET, reference_to("a", 1, bucket="someone-elses"), "GATECAST_PAYLOAD_BUCKET is another bucket"),
        (None, reference_to("a", 1), "GATECAST_PAYLOAD_BUCKET is not set"),
    ],
)
def test_an_object_of_another_bucket_counts_as_missing(
    bucket: str | None, reference: Reference, reason: str, stream: StreamTable, log: io.StringIO
) -> None:
    s3 = FakeS3()
    subject = history(stream, s3, bucket)
    since = stream.append("room")
    stream.append("room", reference=reference)
    last = stream.append("room")
    recovery = subject.resume({"room": Position(since=since)}, 1)["room"]
    assert (recovery.recovered, [each.offset for each in messages(recovery)]) == (False, [last])
    assert not s3.calls
    assert reason in log.getvalue()


def test_a_link_that_cannot_be_signed_is_no_missing_message(stream: StreamTable) -> None:
    s3 = FakeS3()
    s3.failure = NoCredentialsError()
    since = stream.append("room")
    append(stream)
    with pytest.raises(NoCredentialsError):
        history(stream, s3).read("room", since, 10)


def test_urls_lead_to_the_buckets_region_without_a_redirect() -> None:
    session = boto3.session.Session("AKIAEXAMPLE", "secret", "token", region_name="eu-west-1")
    config = Config(signature_version="s3v4", s3={"addressing_style": "virtual"})
    payloads = Payloads(BUCKET, lambda: session.client("s3", config=config))
    link = payloads.link(reference_to("a b/é", 1), None)
    assert link
    assert link.url.startswith(f"https://{BUCKET}.s3.eu-west-1.amazonaws.com/a%20b/%C3%A9?X-Amz-Algorithm=AWS4-HMAC-")
    assert "X-Amz-Expires=3600" in link.url
