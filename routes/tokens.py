"""Token verification: the user and the access that a token proves, or why it is rejected.

There are two rejections: 401 if the token does not prove who sent it, so the client needs another one; and 403 if it
does, but its claims are invalid, which the issuer must fix.

| claim | meaning |
|---|---|
| `iss`, `aud` | must equal the configured issuer, and equal or contain the configured audience |
| `exp` | required. All access ends LEEWAY_SECONDS later |
| `nbf`, `iat` | optional; at most LEEWAY_SECONDS in the future |
| `sub` | required: the user, 1 to 94 characters from ! to ~ |
| `gatecast` | optional: `{"join": [grant, …], "publish": [grant, …]}`; everything that is not granted is rejected |

The signature is verified first: until then only the algorithm and the key id are read. Keys come from the configuration
alone: keys in a header (`jwk`, `jku`, `x5c`, `x5u`) are ignored.
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
"""The tolerated difference between the issuer's clock and ours."""
MAX_TOKEN_LENGTH: Final = 8_192
"""API Gateway accepts 8 KB from an authorizer; the context made from a token of this length is always shorter."""

_COMPACT: Final = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)
_REQUIRED: Final = ["aud", "exp", "iss", "sub"]


class InvalidToken(Exception):
    """The token is rejected. `status` is 401 or 403; `reason` is for the log and quotes nothing of the token."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Identity(NamedTuple):
    """The verified user and its access."""

    user: str
    access: Access


class _Grants(msgspec.Struct):
    join: list[str] = []
    publish: list[str] = []


class _Claims(msgspec.Struct):
    sub: str
    exp: int | float
    gatecast: _Grants = msgspec.field(default_factory=_Grants)


class Verifier:
    """Verifies the tokens of one issuer for one audience."""

    def __init__(self, keys: Keys, *, issuer: str, audience: str, clock: Callable[[], float] = time.time) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._clock = clock

    def verify(self, token: str) -> Identity:
        """The identity that the token proves. Raises InvalidToken, or KeysUnavailable if no token can be verified."""
        if len(token) > MAX_TOKEN_LENGTH or not _COMPACT.fullmatch(token):
            raise _unauthorized("not a token")
        kid = self._key_id(token)
        claims = self._claims(token, self._keys.candidates(kid))
        if claims is None and self._keys.refresh():  # it may be signed with a newer key
            claims = self._claims(token, self._keys.candidates(kid))
        if claims is None:
            raise _unauthorized("not signed with a key of the issuer")
        return self._identity(claims)

    def _key_id(self, token: str) -> str | None:
        try:
            header = jwt.get_unverified_header(token)
        except jwt.InvalidTokenError as error:
            raise _unauthorized(type(error).__name__) from None
        if header.get("alg") not in self._keys.algorithms:
            raise _unauthorized("unsupported algorithm")
        if "crit" in header:
            raise _unauthorized("unsupported critical extension")
        return header.get("kid")

    def _claims(self, token: str, keys: Sequence[Key]) -> dict[str, Any] | None:
        """The claims of a currently valid token; None if it is signed with none of these keys."""
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
            raise _forbidden("sub does not fit in a room's name")
        if not all(map(is_grant, (*claims.gatecast.join, *claims.gatecast.publish))):
            raise _forbidden("gatecast has an invalid grant")
        access = Access(
            join=tuple(dict.fromkeys(claims.gatecast.join)),
            publish=tuple(dict.fromkeys(claims.gatecast.publish)),
            # no connection lives longer, even if the token does
            expires_at=min(int(claims.exp) + LEEWAY_SECONDS, int(self._clock()) + CONNECTION_TTL_SECONDS),
        )
        return Identity(claims.sub, access)


def _unauthorized(reason: str) -> InvalidToken:
    return InvalidToken(HTTPStatus.UNAUTHORIZED, reason)


def _forbidden(reason: str) -> InvalidToken:
    return InvalidToken(HTTPStatus.FORBIDDEN, reason)
