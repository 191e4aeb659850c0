"""S3: whether an object is there and how long it is, and presigned URLs.

Each broadcast with a reference needs one call, so the SDK's own client is fast enough here, unlike for SQS and
DynamoDB. The call reads the object's first byte: that takes the permission, the key and the state of the object that a
client's request for the URL takes, and unlike for a HEAD request an error has a code.
"""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore.exceptions import ClientError

from gatecast.broadcast import Reference
from gatecast.frames import Link
from gatecast.references import addressing_style, link_seconds, to_link
from worker.aws.errors import reading_response, sdk_errors
from worker.observe.metrics import ServiceCalls
from worker.ports import NoObject
from worker.settings import ConfigurationError

_GET: Final = "get_object"
_OPERATION: Final = "GetObject"
_CONNECTIONS: Final = 16
_OF_THIS_OBJECT: Final = frozenset({
    "404", "AccessDenied", "InvalidObjectState", "InvalidRange", "InvalidRequest", "NoSuchKey",
})  # fmt: skip
"""Errors that S3 returns for this object for as long as it is what it is: it is not there (the SDK's code is the status
if S3 returns none), may not be read, is archived, is empty, or is encrypted with a key of its publisher's own. All
others may pass: they concern the bucket, the credentials, the clock, the rate or KMS. Source: API reference of S3,
error responses."""


class S3Payloads:
    """Objects of `bucket`, through the SDK's client. Raises DependencyError. Clocks give seconds since the epoch.

    `credentials_expire_at` returns when the credentials expire with which URLs are signed; None if they do not.
    """

    def __init__(
        self,
        client: Any,
        bucket: str,
        *,
        calls: ServiceCalls,
        credentials_expire_at: Callable[[], float | None],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.bucket = bucket
        self._client = client
        self._calls = calls
        self._credentials_expire_at = credentials_expire_at
        self._wall_clock = wall_clock

    async def length(self, key: str) -> int:
        """The length of the object in bytes, at least 1. Raises NoObject."""
        started_at = time.monotonic()
        with sdk_errors():
            try:
                response = await self._client.get_object(Bucket=self.bucket, Key=key, Range="bytes=0-0")
                async with response["Body"]:
                    pass  # its connection is used again
            except ClientError as error:
                missing = error.response["Error"]["Code"] in _OF_THIS_OBJECT
                self._calls.record_response("s3", _OPERATION, time.monotonic() - started_at, error=not missing)
                if missing:
                    raise NoObject(str(error.response["Error"]["Code"])) from None
                raise
            except BaseException:
                self._calls.record_failure("s3", _OPERATION)
                raise
        self._calls.record_response("s3", _OPERATION, time.monotonic() - started_at, error=False)
        with reading_response():
            _, slash, total = response.get("ContentRange", "").partition("/")
            return int(total) if slash else int(response["ContentLength"])

    async def link(self, reference: Reference, message_expires_at_ms: int | None) -> Link:
        """A new link to the object. It makes no call, except where the SDK renews its credentials.

        They are renewed at most after their expiry has been read, so the link never promises too much.
        """
        made_at = self._wall_clock()
        seconds = link_seconds(made_at, message_expires_at_ms, self._credentials_expire_at())
        with sdk_errors():
            url = await self._client.generate_presigned_url(
                _GET, Params={"Bucket": self.bucket, "Key": reference.key}, ExpiresIn=seconds
            )
        return to_link(reference, url, made_at=made_at, seconds=seconds)


@asynccontextmanager
async def open_payloads(
    session: AioSession, bucket: str, *, calls: ServiceCalls, credentials_expire_at: Callable[[], float | None]
) -> AsyncIterator[S3Payloads]:
    """The bucket at the endpoint that the SDK would call, in the session's Region. Raises ConfigurationError.

    Only create it when there are credentials: a client that was created before would never find any.
    """
    try:
        async with session.create_client("s3") as found:
            style = addressing_style(found.meta.endpoint_url)
    except ValueError as error:
        raise ConfigurationError(f"AWS_PROFILE or the SDK's files are wrong: {error}") from None
    config = AioConfig(
        signature_version="s3v4",
        s3={"addressing_style": style},
        retries={"total_max_attempts": 1},
        connect_timeout=2,
        read_timeout=5,
        max_pool_connections=_CONNECTIONS,
    )
    async with session.create_client("s3", config=config) as client:
        yield S3Payloads(client, bucket, calls=calls, credentials_expire_at=credentials_expire_at)
