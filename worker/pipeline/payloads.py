"""Payloads that are objects in S3: whether a broadcast's is there, and the link by which its members read it.

Only objects of this worker's own bucket are delivered. A link lets its members read what the worker may read; of any
other bucket, a publisher could let them read what is not meant for them.

A broadcast whose payload cannot be delivered is given up as a whole: no later attempt would do better. Without a
dead-letter queue it is deferred if a change of the worker's settings or role may help. While S3 fails, the broadcast
waits.
"""

import msgspec
from msgspec import UNSET, UnsetType

from gatecast.broadcast import Broadcast, Reference
from gatecast.dead_letters import FOREIGN_BUCKET, MISSING_OBJECT, NO_BUCKET
from gatecast.frames import Link
from worker.observe.health import Health
from worker.pipeline.lease import Lease
from worker.ports import NoObject, PayloadStore
from worker.resilience import retry_forever


class Undeliverable(Exception):
    """The payload cannot be delivered. `reason` is one of `gatecast.dead_letters`, `why` what is wrong or to be set.

    `may_pass`: a setting or a permission of the worker may be all that is missing.
    """

    def __init__(self, reason: str, why: str, *, may_pass: bool = False) -> None:
        super().__init__(f"{reason}: {why}")
        self.reason = reason
        self.why = why
        self.may_pass = may_pass


class Payloads:
    """`store` is None if no bucket is set."""

    def __init__(self, store: PayloadStore | None, health: Health) -> None:
        self._store = store
        self._health = health

    async def find(self, broadcast: Broadcast, lease: Lease) -> Broadcast:
        """The broadcast, with the real length of its payload if that is an object. Raises Undeliverable, LeaseEnded."""
        reference = broadcast.reference
        if reference is UNSET:
            return broadcast
        store = self._checked(reference)
        try:
            length = await lease.while_held(
                lambda: retry_forever("payloads", self._health, lambda: store.length(reference.key))
            )
        except NoObject as missing:
            raise Undeliverable(MISSING_OBJECT, missing.code, may_pass=missing.code == "AccessDenied") from None
        return msgspec.structs.replace(broadcast, reference=msgspec.structs.replace(reference, bytes=length))

    async def link(self, broadcast: Broadcast) -> Link | UnsetType:
        """A new link to the payload of a broadcast that `find` has returned; UNSET if it is in the broadcast itself."""
        reference, expires_at_ms = broadcast.reference, broadcast.expires_at_ms
        if reference is UNSET:
            return UNSET
        store = self._checked(reference)
        message_expires_at_ms = None if expires_at_ms is UNSET else expires_at_ms
        return await retry_forever("payloads", self._health, lambda: store.link(reference, message_expires_at_ms))

    def _checked(self, reference: Reference) -> PayloadStore:
        """The store that has this object. Raises Undeliverable."""
        if self._store is None:
            raise Undeliverable(NO_BUCKET, "set GATECAST_PAYLOAD_BUCKET to the bucket of payloads", may_pass=True)
        if reference.bucket != self._store.bucket:
            raise Undeliverable(FOREIGN_BUCKET, "it is not the one that GATECAST_PAYLOAD_BUCKET names")
        return self._store
