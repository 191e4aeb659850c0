"""What a token lets a connection do: which rooms it may join and publish to, and until when.

The authorizer writes it into its context, API Gateway passes that context to every route of the connection, and the
routes read it: no state is kept in between, and a client has no way to change it. Pure.

A *grant* is a room's name, or `prefix/*`, which covers every room whose name is `prefix/` and at least one more
character. A star has no other meaning: `*`, `a*` and `*/b` are not valid grants, and neither is any text that begins
with `@`. No grant covers a system room.
"""

import re
from collections.abc import Iterable
from typing import Any, Final

import msgspec

NAME: Final = re.compile(r"[!-~]{1,100}")
"""The pattern of a room's name."""

_NO_STAR: Final = "[!-)+-~]"
_GRANT: Final = re.compile(rf"(?!@)(?:{_NO_STAR}{{1,100}}|{_NO_STAR}{{1,98}}/\*)")


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """The grants, and the second since the epoch at which they end."""

    join: tuple[str, ...]
    publish: tuple[str, ...]
    expires_at: int


class AuthorizerContext(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The authorizer's context for a connection: flat strings, because API Gateway accepts nothing else.

    With `expires_at`, everything that is not granted is rejected, and absent grants mean none. Without it the context
    comes from an authorizer that identifies users but issues no grants; it is sufficient only where GATECAST_AUTHORIZER
    allows open access.
    """

    user: str | None = None
    principal_id: str | None = None
    join: str = ""
    publish: str = ""
    expires_at: str = ""

    @classmethod
    def from_access(cls, user: str, access: Access) -> "AuthorizerContext":
        return cls(
            user=user, join=" ".join(access.join), publish=" ".join(access.publish), expires_at=str(access.expires_at)
        )

    def access(self) -> Access | None:
        """The access it grants, or None without `expires_at`. Raises ValueError if `expires_at` is not a number."""
        if not self.expires_at:
            return None
        return Access(
            join=tuple(self.join.split()), publish=tuple(self.publish.split()), expires_at=int(self.expires_at)
        )

    def flat(self) -> dict[str, Any]:
        """As API Gateway accepts it. Empty fields are omitted: how it treats empty strings is not documented."""
        flat: dict[str, Any] = msgspec.to_builtins(self)
        return flat


def is_grant(text: str) -> bool:
    return bool(_GRANT.fullmatch(text))


def covers(grants: Iterable[str], room: str) -> bool:
    """Whether one of the grants covers this room."""
    return not room.startswith("@") and any(_covers(grant, room) for grant in grants)


def user_room(user: str) -> str | None:
    """The user's own room, or None if the user's name does not fit in a room's name."""
    room = f"@user/{user}"
    return room if user and NAME.fullmatch(room) else None


def _covers(grant: str, room: str) -> bool:
    if not grant.endswith("/*"):
        return room == grant
    prefix = grant.removesuffix("*")
    return room.startswith(prefix) and room != prefix
