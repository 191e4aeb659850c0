"""References: payloads that are objects in S3, and the links by which clients read them. Pure.

A link is a presigned URL. Anyone who has it can read this one object, and nothing else, until it ends. So it is made
when a message is delivered or read, and never stored.
"""

from typing import Final

from gatecast.broadcast import Reference
from gatecast.frames import Link

LINK_SECONDS: Final = 3600
"""For how long a link works, unless the message or the credentials that sign it expire before."""
NEW_LINK_SECONDS: Final = 300
"""A delivery that takes longer gets a new link this often, so that each one is at most this old when it is posted."""


def link_seconds(now: float, message_expires_at_ms: float | None, credentials_expire_at: float | None) -> int:
    """For how many seconds, at least 1, a link that is made `now` works. Times are since the epoch."""
    ends = [now + LINK_SECONDS]
    if message_expires_at_ms is not None:
        ends.append(message_expires_at_ms / 1000)
    if credentials_expire_at is not None:
        ends.append(credentials_expire_at)
    return max(1, int(min(ends) - now))


def to_link(reference: Reference, url: str, *, made_at: float, seconds: int) -> Link:
    """The link for clients. `made_at` is a time, in seconds since the epoch, before the URL was signed."""
    return Link(
        url=url,
        bytes=reference.bytes,
        content_type=reference.content_type,
        expires_at_ms=(int(made_at) + seconds) * 1000,
    )


def addressing_style(endpoint_url: str) -> str:
    """How URLs name the bucket, for the SDK's clients of S3 at this endpoint.

    On AWS in the host name, so that a URL leads to the bucket's Region at once: by default the SDK signs URLs for one
    host of all Regions, which may redirect to another one, and the signature does not hold there. Emulators have no
    such host names.
    """
    return "virtual" if ".amazonaws.com" in endpoint_url else "path"
