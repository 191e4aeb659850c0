"""What a token is worth: the user and the access that it proves, or why it is refused.

Two refusals: 401 where it does not prove who sent it, so that a client needs another one, and 403 where it does, but
claims what nobody can have, so that its issuer has something to mend.

| claim | meaning |
|---|---|
| `iss`, `aud` | must be the configured issuer, and be or hold the configured audience |
| `exp` | required. All access ends LEEWAY_SECONDS later |
| `nbf`, `iat` | optional; not in the future, by more than LEEWAY_SECONDS |
| `sub` | required: the user, 1 to 94 characters from ! to ~ |
| `gatecast` | optional: `{"join": [grant, …], "publish": [grant, …]}`; what is not granted is refused |

The signature comes first: until it is verified, nothing but the algorithm and the key's id is read. Keys come from the
configuration alone: what a header says of keys (`jwk`, `jku`, `x5c`, `x5u`) is never looked at.
"""

import re
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import jwt
import msgspec

from gatecast.table import CONNECTION_TTL_SECONDS
from routes.access import Access, is_grant, user_room
from routes.keys import Key, Keys

LEEWAY_SECONDS: Final = 10
"""How far the issuer's clock may be from ours."""
MAX_TOKEN_LENGTH: Final = 8_192
"""API Gateway takes 8 KB of an authorizer's answer, and whatever a token of this length grants is shorter there."""

_COMPACT: Final = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)
_REQUIRED: Final = ["aud", "exp", "iss", "sub"]


class RefusedToken(Exception):  # noqa: N818 - it says what became of the token
    """`status` is 401 or 403. `reason` is for the log: words of ours, and none of the token's."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Identity(NamedTuple):
    """Who connects, and what with."""

    user: str
    access: Access


class _Rooms(msgspec.Struct):
    join: list[str] = []
    publish: list[str] = []


class _Claims(msgspec.Struct):
    sub: str
    exp: int | float
    gatecast: _Rooms = msgspec.field(default_factory=_Rooms)


class Verifier:
    """Verifies the tokens of one issuer for one audience."""

    def __init__(self, keys: Keys, *, issuer: str, audience: str, clock: Callable[[], float] = time.time) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._clock = clock

    def verify(self, token: str) -> Identity:
        """Raises RefusedToken for whatever is not a good token, and KeysUnavailable where no token can be verified."""
        if len(token) > MAX_TOKEN_LENGTH or not _COMPACT.fullmatch(token):
            raise _unauthorized("not a token")
        kid = self._key_id(token)
        claims = self._claims(token, self._keys.candidates(kid))
        if claims is None and self._keys.refresh():  # signed with a key that is newer than ours
            claims = self._claims(token, self._keys.candidates(kid))
        if claims is None:
            raise _unauthorized("signed with no key of the issuer's")
        return self._identity(claims)

    def _key_id(self, token: str) -> str | None:
        try:
            header = jwt.get_unverified_header(token)
        except jwt.InvalidTokenError as error:
            raise _unauthorized(type(error).__name__) from None
        if header.get("alg") not in self._keys.algorithms:
            raise _unauthorized("another algorithm")
        if "crit" in header:
            raise _unauthorized("a critical extension")
        return header.get("kid")

    def _claims(self, token: str, keys: Sequence[Key]) -> dict[str, Any] | None:
        """The claims of a token that holds now; None if none of these keys has signed it."""
        for key in keys:
            try:
                return jwt.decode(
                    token,
                    key,
                    algorithms=self._keys.algorithms,
                    audience=self._audience,
                    issuer=self._issuer,
                    leeway=LEEWAY_SECONDS,
                    options={"require": _REQUIRED, "enforce_minimum_key_length": True},
                )
            except (jwt.InvalidSignatureError, jwt.InvalidAlgorithmError):
                continue  # not this key
            except jwt.InvalidTokenError as error:
                raise _unauthorized(type(error).__name__) from None
        return None

    def _identity(self, verified: dict[str, Any]) -> Identity:
        try:
            claims = msgspec.convert(verified, _Claims)
        except msgspec.ValidationError:
            raise _forbidden("claims of the wrong type") from None
        if user_room(claims.sub) is None:
            raise _forbidden("sub fits in no room's name")
        if not all(map(is_grant, (*claims.gatecast.join, *claims.gatecast.publish))):
            raise _forbidden("gatecast grants what is no grant")
        access = Access(
            join=tuple(dict.fromkeys(claims.gatecast.join)),
            publish=tuple(dict.fromkeys(claims.gatecast.publish)),
            # no connection lives longer, whatever the token says
            expires_at=min(int(claims.exp) + LEEWAY_SECONDS, int(self._clock()) + CONNECTION_TTL_SECONDS),
        )
        return Identity(claims.sub, access)


def _unauthorized(reason: str) -> RefusedToken:
    return RefusedToken(HTTPStatus.UNAUTHORIZED, reason)


def _forbidden(reason: str) -> RefusedToken:
    return RefusedToken(HTTPStatus.FORBIDDEN, reason)
