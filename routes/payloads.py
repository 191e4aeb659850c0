"""Links to payloads that are objects in S3, for messages that are read from a room's history.

A link is made for each response, without a call, and only to an object of the configured bucket: the role may read no
other, and what an item of the table names is not trusted. Whether the object is there is not checked: its bucket keeps
it for longer than any history.
"""

import time
from collections.abc import Callable
from typing import Any, Protocol

from gatecast.broadcast import Reference
from gatecast.frames import Link
from gatecast.references import link_seconds, to_link
from routes.log import logger


class SupportsPresigning(Protocol):
    """The method of a boto3 S3 client that links need."""

    def generate_presigned_url(self, *args: Any, **kwargs: Any) -> str: ...


class Payloads:
    """The bucket, through the boto3 client that `s3` returns. `clock` is in seconds since the epoch. Thread-safe.

    `bucket` is None if none is set; then no client is needed, and there are no links. `credentials_expire_at` returns
    when the client's credentials expire, if that is known.
    """

    def __init__(
        self,
        bucket: str | None,
        s3: Callable[[], SupportsPresigning] | None = None,
        *,
        credentials_expire_at: Callable[[], float | None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._bucket = bucket
        self._s3 = s3
        self._credentials_expire_at = credentials_expire_at
        self._clock = clock

    def link(self, reference: Reference, message_expires_at_ms: float | None) -> Link | None:
        """A new link to the object; None if it is in another bucket. The SDK's errors pass through."""
        if reference.bucket != self._bucket or self._s3 is None:
            reason = "GATECAST_PAYLOAD_BUCKET is " + ("another bucket" if self._bucket else "not set")
            logger.warning("payload.unreadable", extra={"reason": f"{reason}: the message counts as missing"})
            return None
        made_at = self._clock()
        seconds = link_seconds(made_at, message_expires_at_ms, self._credentials_expire_at())
        parameters = {"Bucket": reference.bucket, "Key": reference.key}
        url = self._s3().generate_presigned_url("get_object", Params=parameters, ExpiresIn=seconds)
        return to_link(reference, url, made_at=made_at, seconds=seconds)
