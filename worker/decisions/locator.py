"""Where a member is in a table that is not Gatecast's. Pure.

The key of Gatecast's own memberships ends in the connection id, so the id of a member is enough to read on after it. In
other tables more attributes may be needed. A locator holds them, as text: it is the cursor of checkpoints, and leads
from a gone connection to its item. It begins with the *prefix* of the source that was paged (`prefix`), so that a
worker that pages another one does not resume there. Locators sort before all connection ids of API Gateway: a worker
of an earlier version, which takes one for a connection id, starts from the beginning.
"""

import hashlib
import re
from typing import Any, Final

import msgspec

MAX_USER_CHARACTERS: Final = 256
"""A longer name of a user is left out."""
_LOCATOR: Final = re.compile(r"![0-9a-f]{12} \[")
_PREFIX_CHARACTERS: Final = 14


class Locator(msgspec.Struct, frozen=True, array_like=True):
    """The attributes of a member's keys other than the partition key that was read, and its user, if that is needed.

    Attributes are in DynamoDB's JSON.
    """

    attributes: dict[str, dict[str, Any]]
    user: str = ""

    def encode(self, prefix: str) -> str:
        return f"{prefix}{msgspec.json.encode(self).decode()}"

    @classmethod
    def decode(cls, text: str) -> "Locator":
        """Raises msgspec.MsgspecError for anything that `encode` does not return."""
        return msgspec.json.decode(text[_PREFIX_CHARACTERS:].encode(), type=cls)


def prefix(*source: str) -> str:
    """The prefix of all locators in a source. `source` are the texts that identify it."""
    return f"!{hashlib.sha256(msgspec.json.encode(source)).hexdigest()[:12]} "


def is_locator(cursor: str) -> bool:
    """Whether a checkpoint's cursor is a locator, and not a connection id or a number."""
    return _LOCATOR.match(cursor) is not None


def can_resume(cursor: str, source: str) -> bool:
    """Whether reading can continue after this cursor in the source with this prefix, empty for Gatecast's own table."""
    if not cursor:
        return True
    return cursor.startswith(source) if source else not is_locator(cursor)
