"""What the members of one broadcast are posted: at most one body per dialect, and one for members that it excludes.

Bodies are made when the first delivery needs them, so a room of v1 connections costs one, and it is the payload as it
came. Which body a member receives depends on its dialect and on whether `except` names it:

| member | room with history (the broadcast has an offset) | otherwise |
|---|---|---|
| v1 | the payload | the payload |
| v2 | the frame | the frame |
| v1, excluded | nothing | nothing |
| v2, excluded | the frame without the message, so that the client misses no offset | nothing |

A payload that is an object in S3 is posted as a link to it, in both dialects. Links end, so a long delivery gets new
ones (`renew_link`). A change of presence is posted only to v2 connections. A broadcast that closes connections is two
requests for a v2 connection, the frame that says why and `DELETE`, and one for a v1 connection; those that it excludes
stay open. A frame that is too long for API Gateway is posted to none: `TOO_LARGE` stands for it.
"""

from typing import Final, cast

import msgspec
from msgspec import UNSET, UnsetType

from gatecast import frames
from gatecast.broadcast import Broadcast
from gatecast.frames import V1, V2, Link
from worker.decisions.receipts import billed_units
from worker.transport.signing import Prepared

EXCLUDED: Final = 2
"""A member's *variant* is its dialect, plus this if the broadcast excludes it."""
_VARIANTS: Final = V2 + EXCLUDED + 1
_NEVER: Final = (-1, -1)


class Body(msgspec.Struct, eq=False):
    """A payload for connections that use the dialect `frames`, and the request that was last prepared with it."""

    payload: bytes
    frames: int
    method: str = "POST"
    then: "Body | None" = None
    """The body of the same delivery's next request, if this is not the last one."""
    prepared_for: tuple[int, int] = _NEVER
    """The second, and the signer's generation, for which `prepared` holds; it is not set before the first one."""
    prepared: Prepared = cast(Prepared, None)
    accepted: int = 0
    """Requests with it that succeeded."""
    for_excluded: bool = False
    """Whether it is for members that the broadcast excludes."""


TOO_LARGE: Final = Body(b"", V2)
"""Of deliveries that cannot be posted, because the broadcast's frame is longer than API Gateway accepts."""


class Bodies:
    """The bodies of `broadcast`, whose time of publication must be known.

    `ready` has by variant what was made; None if it was not, or cannot be posted. `presence_frame` is the frame of a
    change of presence; by default it is made from the broadcast as it is. `link` leads to a payload that is an object.
    """

    def __init__(
        self, broadcast: Broadcast, presence_frame: bytes | None = None, link: Link | UnsetType = UNSET
    ) -> None:
        self._broadcast = broadcast
        self._presence_frame = presence_frame
        self._link = link
        self._only_v2 = broadcast.presence is not UNSET
        self._has_offset = broadcast.offset is not UNSET and broadcast.close is UNSET
        self._too_large = False
        self._made: list[Body] = []
        self.ready: list[Body | None] = [None] * _VARIANTS

    def skips(self, variant: int) -> bool:
        """Whether nothing is sent to members of this variant, so that there is no delivery."""
        if variant == V2:
            return False
        if variant == V1:
            return self._only_v2
        return variant == V1 + EXCLUDED or not self._has_offset

    def body(self, variant: int) -> Body:
        """The body for members of a variant that `skips` does not skip; TOO_LARGE if it cannot be posted."""
        if variant == V2 and self._too_large:
            return TOO_LARGE
        body = self.ready[variant]
        if body is None:
            body = self._make(variant)
            self._made += [body] if body.then is None else [body, body.then]
            if len(body.payload) > frames.MAX_FRAME_BYTES:
                self._too_large = True
                return TOO_LARGE
            self.ready[variant] = body
        return body

    def renew_link(self, link: Link) -> None:
        """Post this link from now on, also to members whose deliveries have begun."""
        self._link = link
        for variant in (V1, V2):
            body = self.ready[variant]
            if body is not None:
                body.payload = self._make(variant).payload
                body.prepared_for = _NEVER

    @property
    def held_bytes(self) -> int:
        return sum(len(body.payload) for body in self.ready if body is not None)

    @property
    def has_frames(self) -> bool:
        """Whether there are deliveries to members that use v2."""
        return self._too_large or self.ready[V2] is not None or self.ready[V2 + EXCLUDED] is not None

    @property
    def delivered(self) -> int:
        """The number of deliveries whose last request has succeeded."""
        return sum(body.accepted for body in self._made if body.then is None)

    @property
    def delivered_to_excluded(self) -> int:
        """Those of `delivered` that were for members that the broadcast excludes."""
        return sum(body.accepted for body in self._made if body.for_excluded)

    @property
    def accepted_posts(self) -> int:
        return sum(body.accepted for body in self._made if body.method == "POST")

    @property
    def billed_units(self) -> int:
        """The units for which API Gateway bills the accepted posts."""
        return sum(body.accepted * billed_units(len(body.payload)) for body in self._made if body.method == "POST")

    def _make(self, variant: int) -> Body:
        close = self._broadcast.close
        if close is not UNSET:
            deletion = Body(b"", variant, "DELETE")
            return deletion if variant == V1 else Body(frames.closed(close.code, retry=close.retry), V2, then=deletion)
        if variant == V1:
            return Body(self._payload(), V1)
        if variant == V2:
            return Body(self._frame(), V2)
        return Body(frames.skipping_frame(self._broadcast), V2, for_excluded=True)

    def _payload(self) -> bytes:
        broadcast, link = self._broadcast, self._link
        if link is not UNSET:
            return frames.reference(link)
        return broadcast.data.encode() if isinstance(broadcast.data, str) else bytes(broadcast.json or b"")

    def _frame(self) -> bytes:
        broadcast = self._broadcast
        presence = broadcast.presence
        if presence is UNSET:
            return frames.broadcast_frame(broadcast, self._link)
        if self._presence_frame is not None:
            return self._presence_frame
        return frames.presence(
            str(frames.room_of(broadcast)),
            joined=presence.joined,
            departed=presence.departed,
            at_ms=int(broadcast.published_at_ms or 0),
        )
