"""What a token lets a connection do: which rooms it may join and publish to, and until when.

The authorizer writes it into its context, API Gateway hands that context to every route of the connection, and the
routes read it: nothing is kept in between, and a client has no way to change it. Pure.

A *grant* is a room's name, or `prefix/*`: every room that begins with `prefix/` and goes on after it. A star means that
and nothing else, so `*`, `a*` and `*/b` are no grants; neither is what begins with `@`. No grant covers a system room.
"""

import re
from collections.abc import Iterable
from typing import Any, Final

import msgspec

NAME: Final = re.compile(r"[!-~]{1,100}")
"""What a room's name looks like."""

_NO_STAR: Final = "[!-)+-~]"
_GRANT: Final = re.compile(rf"(?!@)(?:{_NO_STAR}{{1,100}}|{_NO_STAR}{{1,98}}/\*)")


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """The grants, and the second since the epoch at which they end."""

    join: tuple[str, ...]
    publish: tuple[str, ...]
    expires_at: int


class AuthorizerContext(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What an authorizer says of a connection: flat strings, for API Gateway takes no others.

    With `expires_at`, what is not granted is refused, and absent grants are none. Without it this is no token's context
    but that of an authorizer that only knows users: it is enough where GATECAST_AUTHORIZER lets anyone in, and nowhere
    else.
    """

    user: str | None = None
    principal_id: str | None = None
    join: str = ""
    publish: str = ""
    expires_at: str = ""

    @classmethod
    def of(cls, user: str, access: Access) -> "AuthorizerContext":
        return cls(
            user=user, join=" ".join(access.join), publish=" ".join(access.publish), expires_at=str(access.expires_at)
        )

    def access(self) -> Access | None:
        """Raises ValueError if `expires_at` is no number."""
        if not self.expires_at:
            return None
        return Access(
            join=tuple(self.join.split()), publish=tuple(self.publish.split()), expires_at=int(self.expires_at)
        )

    def flat(self) -> dict[str, Any]:
        """As API Gateway takes it; what is empty is left out, because nobody says what becomes of empty strings."""
        flat: dict[str, Any] = msgspec.to_builtins(self)
        return flat


def is_grant(text: str) -> bool:
    return bool(_GRANT.fullmatch(text))


def covers(grants: Iterable[str], room: str) -> bool:
    """Whether one of the grants covers this room."""
    return not room.startswith("@") and any(_covers(grant, room) for grant in grants)


def user_room(user: str) -> str | None:
    """The room of a user, or None if the user's name fits in no room's."""
    room = f"@user/{user}"
    return room if user and NAME.fullmatch(room) else None


def _covers(grant: str, room: str) -> bool:
    if not grant.endswith("/*"):
        return room == grant
    prefix = grant.removesuffix("*")
    return room.startswith(prefix) and room != prefix
