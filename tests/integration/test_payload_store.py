"""The bucket of payloads: the same tests in memory and on ministack's S3, and who can read what with a link."""

import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiobotocore.session import AioSession
from botocore.exceptions import ClientError

from gatecast.references import LINK_SECONDS
from tests.memory_payloads import MemoryPayloads, reference_to
from worker.aws.payloads import S3Payloads, open_payloads
from worker.aws.session import find_session
from worker.observe.metrics import ServiceCalls
from worker.ports import DependencyError, NoObject, PayloadStore

CONTENT = b"<svg/>" * 50_000
KEY = "a b/é+%2F?"


@pytest.fixture
def session(aws: dict[str, str]) -> AioSession:
    return find_session(aws)


@pytest.fixture
async def on_s3(session: AioSession, s3: Any, payload_bucket: str) -> AsyncIterator[S3Payloads]:
    s3.put_object(Bucket=payload_bucket, Key=KEY, Body=CONTENT, ContentType="image/svg+xml")
    s3.put_object(Bucket=payload_bucket, Key="empty", Body=b"")
    calls = ServiceCalls()
    async with open_payloads(session, payload_bucket, calls=calls, credentials_expire_at=lambda: None) as payloads:
        yield payloads
    assert set(calls.durations) <= {("s3", "GetObject")}
    assert not calls.errors.total(), "an object that is not there is no failure of S3"


@pytest.fixture(params=["memory", "s3"])
def payloads(request: pytest.FixtureRequest) -> PayloadStore:
    if request.param == "s3":
        store: S3Payloads = request.getfixturevalue("on_s3")
        return store
    memory = MemoryPayloads(wall_clock=time.time)
    memory.lengths = {KEY: len(CONTENT), "empty": 0}
    return memory


async def test_an_object_has_a_length_and_without_one_there_is_none(payloads: PayloadStore) -> None:
    assert await payloads.length(KEY) == len(CONTENT)
    for key, code in (("nowhere", "NoSuchKey"), ("empty", "InvalidRange")):
        with pytest.raises(NoObject) as missing:
            await payloads.length(key)
        assert missing.value.code == code


async def test_a_link_has_what_the_reference_says_and_ends_with_the_message(payloads: PayloadStore) -> None:
    reference, now = reference_to(KEY, 7), time.time()
    for expires_at_ms, seconds in ((None, LINK_SECONDS), (int(now * 1000) + 60_000, 60)):
        link = await payloads.link(reference, expires_at_ms)
        assert (link.bytes, link.content_type) == (7, reference.content_type)
        assert now + seconds - 2 <= link.expires_at_ms / 1000 <= now + seconds + 1


def fetch(url: str, *, method: str = "GET", **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(url, method=method, headers=headers)  # noqa: S310 - http, on the loopback address
    try:
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


async def test_anyone_reads_the_object_with_the_link_and_nothing_else(on_s3: S3Payloads, s3: Any) -> None:
    url = (await on_s3.link(reference_to(KEY, len(CONTENT), on_s3.bucket), None)).url
    assert fetch(url) == (200, CONTENT)
    s3.put_object(Bucket=on_s3.bucket, Key="other", Body=b"secret")
    path = url.partition("?")[0]
    for changed in (url.replace("X-Amz-Expires=3600", "X-Amz-Expires=604800"), url.replace(path, f"{path}x"), path):
        assert fetch(changed)[0] == 403
    assert fetch(url, method="DELETE")[0] == 403
    assert fetch(url) == (200, CONTENT)


async def test_web_pages_read_it_as_well(on_s3: S3Payloads) -> None:
    """As on AWS, where the bucket allows it; all other requests of web pages are rejected by the local stack."""
    url = (await on_s3.link(reference_to(KEY, 1, on_s3.bucket), None)).url
    headers = {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}
    assert fetch(url, **headers) == (200, CONTENT)
    assert fetch(url, **headers, Host="evil.example")[0] == 403
    assert fetch(url.partition("?")[0], **headers)[0] == 403


async def test_a_link_ends(on_s3: S3Payloads) -> None:
    link = await on_s3.link(reference_to(KEY, 1, on_s3.bucket), int(time.time() * 1000) - 1)
    while (read := fetch(link.url)) == (200, CONTENT):
        assert time.time() < link.expires_at_ms / 1000 + 10
    assert read[0] == 403
    assert b"expired" in read[1]


async def test_a_link_ends_with_the_credentials_that_sign_it(session: AioSession, payload_bucket: str) -> None:
    end = time.time() + 600
    async with open_payloads(
        session, payload_bucket, calls=ServiceCalls(), credentials_expire_at=lambda: end
    ) as payloads:
        link = await payloads.link(reference_to(KEY, 1), None)
    assert end - 2 <= link.expires_at_ms / 1000 <= end
    assert "X-Amz-Expires=599" in link.url or "X-Amz-Expires=600" in link.url


@pytest.mark.parametrize(
    ("status", "code", "waits"),
    [
        (403, "AccessDenied", False),
        (403, "InvalidObjectState", False),
        (400, "InvalidRequest", False),
        (416, "InvalidRange", False),
        (404, "NoSuchKey", False),
        (404, "404", False),
        (404, "NoSuchBucket", True),
        (403, "RequestTimeTooSkewed", True),
        (400, "ExpiredToken", True),
        (503, "SlowDown", True),
        (301, "PermanentRedirect", True),
        (500, "InternalError", True),
        (400, "ThrottlingException", True),
        (400, "KMS.DisabledException", True),
        (429, "TooManyRequests", True),
        (403, "UnknownToThisVersion", True),
    ],
)
async def test_only_what_concerns_this_object_is_no_failure_of_s3(status: int, code: str, waits: bool) -> None:
    class Failing:
        async def get_object(self, **_: Any) -> None:
            response: Any = {
                "Error": {"Code": code, "Message": "secret"},
                "ResponseMetadata": {"HTTPStatusCode": status},
            }
            raise ClientError(response, "GetObject")

    calls = ServiceCalls()
    payloads = S3Payloads(Failing(), "bucket", calls=calls, credentials_expire_at=lambda: None)
    with pytest.raises(DependencyError if waits else NoObject) as raised:
        await payloads.length("key")
    assert raised.value.code == code
    assert calls.errors[("s3", "GetObject")] == waits


async def test_without_s3_it_is_a_failure_that_passes(
    session: AioSession, monkeypatch: pytest.MonkeyPatch, payload_bucket: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    calls = ServiceCalls()
    async with open_payloads(session, payload_bucket, calls=calls, credentials_expire_at=lambda: None) as payloads:
        with pytest.raises(DependencyError, match="EndpointConnectionError"):
            await payloads.length(KEY)
    assert calls.errors[("s3", "GetObject")] == 1
