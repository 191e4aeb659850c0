"""What a token lets a connection do: which rooms it may join and publish to, and until when.

The authorizer writes it into its context, API Gateway passes that context to every route of the connection, and the
routes read it: no state is kept in between, and a client has no way to change it. Pure.

A *grant* is a room's name, or `prefix/*`, which covers every room whose name is `prefix/` and at least one more
character. A star has no other meaning: `*`, `a*` and `*/b` are not valid grants, and neither is any text that begins
with `@`. No grant covers a system room, or a room with a star in its name.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from gatecast.frames import V1, V2

_NO_STAR: Final = "[!-)+-~]"
_SECONDS: Final = re.compile(r"(-?[0-9]{1,15})(?:\.[0-9]+)?")
_GRANT: Final = re.compile(rf"(?!@)(?:{_NO_STAR}{{1,100}}|{_NO_STAR}{{1,98}}/\*)")

_MAX_NUMBER: Final = 2**53
"""From here on, JSON numbers are not exact everywhere: two users could become one."""


class InvalidContext(ValueError):
    """The authorizer's context has a value that cannot be used. The message names its key and quotes no value."""


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """The grants, and the second since the epoch at which they end."""

    join: tuple[str, ...]
    publish: tuple[str, ...]
    expires_at: int


class AuthorizerContext(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The authorizer's context for a connection: flat strings, because API Gateway accepts nothing else.

    With `expires_at`, everything that is not granted is rejected, and absent grants mean none. Without it the context
    comes from an authorizer that identifies users but issues no grants; it is sufficient only where GATECAST_AUTHORIZER
    allows open access. `principalId` is no user: authorizers may return the same one for everyone.
    """

    user: str | None = None
    join: str = ""
    publish: str = ""
    expires_at: str = ""
    frames: str = ""
    """"2" for a connection of the dialect `gatecast.v2`; anything else counts as the other one."""

    @classmethod
    def from_access(cls, user: str, access: Access, frames: int = V1) -> "AuthorizerContext":
        return cls(
            user=user,
            join=" ".join(access.join),
            publish=" ".join(access.publish),
            expires_at=str(access.expires_at),
            frames="" if frames == V1 else str(frames),
        )

    @classmethod
    def from_event(cls, context: Mapping[str, Any]) -> "AuthorizerContext":
        """`requestContext.authorizer` of an event. Keys that it does not need are ignored. Raises InvalidContext."""
        return cls(
            user=_text(context, "user") or None,
            join=_text(context, "join"),
            publish=_text(context, "publish"),
            expires_at=_text(context, "expiresAt"),
            frames=str(V2) if str(context.get("frames")) in {"2", "2.0"} else "",
        )

    @property
    def dialect(self) -> int:
        """V2 or V1."""
        return V2 if self.frames == str(V2) else V1

    def access(self) -> Access | None:
        """The access it grants, or None without `expires_at`. Raises InvalidContext if `expires_at` is not a number."""
        if not self.expires_at:
            return None
        seconds = _SECONDS.fullmatch(self.expires_at)
        if not seconds:
            raise InvalidContext("expiresAt of the authorizer's context: expected seconds since the epoch")
        return Access(join=tuple(self.join.split()), publish=tuple(self.publish.split()), expires_at=int(seconds[1]))

    def flat(self) -> dict[str, Any]:
        """As API Gateway accepts it. Empty fields are omitted: how it treats empty strings is not documented."""
        flat: dict[str, Any] = msgspec.to_builtins(self)
        return flat


def is_grant(text: str) -> bool:
    return bool(_GRANT.fullmatch(text))


def covers(grants: Iterable[str], room: str) -> bool:
    """Whether one of the grants covers this room."""
    return not room.startswith("@") and "*" not in room and any(_covers(grant, room) for grant in grants)


def _text(context: Mapping[str, Any], key: str) -> str:
    """The value as text, empty if it is absent or null.

    API Gateway itself turns numbers and booleans into text. Other sources of events may leave that to the reader.
    """
    match context.get(key):
        case None:
            return ""
        case str(value):
            return value
        case bool(value):
            return "true" if value else "false"
        case int(value) if abs(value) < _MAX_NUMBER:
            return str(value)
        case float(value) if abs(value) < _MAX_NUMBER:
            return str(int(value)) if value.is_integer() else str(value)
    raise InvalidContext(f"{key} of the authorizer's context: expected a string")


def _covers(grant: str, room: str) -> bool:
    if not grant.endswith("/*"):
        return room == grant
    prefix = grant.removesuffix("*")
    return room.startswith(prefix) and room != prefix
