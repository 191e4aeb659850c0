"""An in-memory bucket of payloads, which behaves as `worker.aws.payloads` does on S3."""

from collections.abc import Callable, Mapping

from gatecast.broadcast import Reference
from gatecast.frames import Link
from gatecast.references import link_seconds, to_link
from tests.memory_stores import BeforeCall, no_cost
from worker.ports import NoObject

BUCKET = "gatecast-payloads"


class MemoryPayloads:
    """`lengths` has the objects' lengths by key. `links` has the links that were made, in order."""

    bucket = BUCKET

    def __init__(
        self,
        lengths: Mapping[str, int] | None = None,
        *,
        wall_clock: Callable[[], float],
        before_call: BeforeCall = no_cost,
    ) -> None:
        self.lengths = dict(lengths or {})
        self.links: list[Link] = []
        self._wall_clock = wall_clock
        self._before_call = before_call

    async def length(self, key: str) -> int:
        await self._before_call("payloads", "length")
        if not self.lengths.get(key):
            raise NoObject("InvalidRange" if key in self.lengths else "NoSuchKey")
        return self.lengths[key]

    async def link(self, reference: Reference, message_expires_at_ms: int | None) -> Link:
        await self._before_call("payloads", "link")
        made_at = self._wall_clock()
        seconds = link_seconds(made_at, message_expires_at_ms, None)
        url = f"https://{self.bucket}.test/{reference.key}?made={len(self.links)}"
        self.links.append(to_link(reference, url, made_at=made_at, seconds=seconds))
        return self.links[-1]


def reference_to(key: str, length: int, bucket: str = BUCKET) -> Reference:
    return Reference(bucket=bucket, key=key, bytes=length, content_type="text/plain; charset=utf-8")
