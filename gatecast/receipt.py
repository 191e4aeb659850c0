"""The receipt in which a broadcast ends: the body of a message on the receipts queue."""

import msgspec


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the members of a broadcast. Each member has exactly one outcome.

    Numbers are of members, except for `posts`, `billed_units` and `seconds`. `room` is None if the broadcast was
    published to `connections`. Decode one with `msgspec.json.decode(body, type=Receipt)`, which ignores other fields.
    """

    id: str
    room: str | None
    members: int
    """The sum of the following six."""
    delivered: int
    gone: int
    """Their connection had ended."""
    expired: int
    """The broadcast expired before they got it."""
    rejected: int
    undelivered: int
    conflated: int
    """They got a newer broadcast instead. Reserved: always 0."""
    posts: int
    """Attempts whose responses arrived; those whose worker was killed before it had recorded them are missing."""
    billed_units: int
    """32 KB units of these attempts that were delivered."""
    seconds: float
    """From the publication to the last outcome."""

    def encode(self) -> str:
        """The body of the message."""
        return msgspec.json.encode(self).decode()
