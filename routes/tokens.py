"""Token verification: the user and the access that a token proves, or why it is rejected.

There are two rejections: 401 if the token does not prove who sent it, so the client needs another one; and 403 if it
does, but its claims are invalid, which the issuer must fix. Both name the claim, for the log.

| claim | meaning |
|---|---|
| `iss` | must equal the configured issuer |
| `aud` | must equal, or contain, one of the configured audiences |
| `exp` | required. All access ends LEEWAY_SECONDS later |
| `nbf`, `iat` | optional; at most LEEWAY_SECONDS in the future |
| `sub` | required: the user, 1 to 94 characters from ! to ~ |
| `gatecast` | optional: the grants; everything that is not granted is rejected |

`aud`, `sub` and `gatecast` may have other names (`ClaimNames`). Grants have one of two forms:

- `{"join": [grant, …], "publish": [grant, …]}`;
- words, as a list or as one text with spaces between them, for example the `scope` of OAuth: `gatecast/join:{grant}`
  and `gatecast/publish:{grant}`. Words that do not begin with `gatecast/` are those of other services, and ignored.

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
from jwt.exceptions import InvalidJTIError

from gatecast.kicks import LEEWAY_SECONDS
from gatecast.rooms.names import user_room
from gatecast.table import CONNECTION_TTL_SECONDS
from routes.access import Access, is_grant
from routes.keys import Key, Keys

MAX_TOKEN_LENGTH: Final = 8_192
"""API Gateway accepts 8 KB from an authorizer; the context made from a token of this length is always shorter."""

_COMPACT: Final = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)
_TIME_CLAIM: Final = re.compile(r"\((exp|nbf|iat)\)")
_WORD_PREFIX: Final = "gatecast/"
_ABSENT: Final[Any] = {}


class InvalidToken(Exception):
    """The token is rejected. `status` is 401 or 403; `reason` is for the log and quotes nothing of the token."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Identity(NamedTuple):
    """The verified user and its access, and when the token was issued, in seconds since the epoch, if it says that."""

    user: str
    access: Access
    issued_at: int | None = None


class ClaimNames(NamedTuple):
    """The names of the claims that issuers name differently."""

    audience: str = "aud"
    user: str = "sub"
    grants: str = "gatecast"


STANDARD_NAMES: Final = ClaimNames()


class _Grants(msgspec.Struct):
    join: list[str] = []
    publish: list[str] = []


class Verifier:
    """Verifies the tokens of one issuer. `audience` is one accepted audience, or several, separated by spaces."""

    def __init__(
        self,
        keys: Keys,
        *,
        issuer: str,
        audience: str,
        names: ClaimNames = STANDARD_NAMES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audiences = frozenset(audience.split())
        self._names = names
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
                claims = jwt.decode(
                    token,
                    key.material,
                    algorithms=key.algorithms,
                    issuer=self._issuer,
                    leeway=LEEWAY_SECONDS,
                    options={
                        "require": ["exp", "iss", self._names.audience, self._names.user],
                        "verify_aud": False,  # below: it may have another name
                        "verify_sub": False,  # in _identity, for the same reason
                        "enforce_minimum_key_length": True,
                    },
                )
            except (jwt.InvalidSignatureError, jwt.InvalidAlgorithmError):
                continue  # not this key
            except jwt.InvalidTokenError as error:
                raise _unauthorized(_reason(error)) from None
            self._check_audience(claims[self._names.audience])
            return claims
        return None

    def _check_audience(self, value: Any) -> None:
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(each, str) for each in values) or self._audiences.isdisjoint(values):
            raise _unauthorized(f"{self._names.audience} is not GATECAST_TOKEN_AUDIENCE")

    def _identity(self, verified: dict[str, Any]) -> Identity:
        user = verified[self._names.user]
        if not isinstance(user, str):
            raise _forbidden(f"{self._names.user} has the wrong type")
        if user_room(user) is None:
            raise _forbidden(f"{self._names.user} does not fit in a room's name")
        exp = verified["exp"]
        if not isinstance(exp, int | float):
            raise _forbidden("exp has the wrong type")
        grants = _grants(verified.get(self._names.grants, _ABSENT), self._names.grants)
        access = Access(
            join=tuple(dict.fromkeys(grants.join)),
            publish=tuple(dict.fromkeys(grants.publish)),
            # no connection lives longer, even if the token does
            expires_at=min(int(exp) + LEEWAY_SECONDS, int(self._clock()) + CONNECTION_TTL_SECONDS),
        )
        return Identity(user, access, int(verified["iat"]) if "iat" in verified else None)


def _grants(value: Any, claim: str) -> _Grants:
    """The grants in either form. Raises InvalidToken (403), which names the claim."""
    try:
        match value:
            case str():
                grants = _from_words(value.split(), claim)
            case list():
                grants = _from_words(msgspec.convert(value, list[str]), claim)
            case _:
                grants = msgspec.convert(value, _Grants)
    except msgspec.ValidationError:
        raise _forbidden(f"{claim} has the wrong type") from None
    if not all(map(is_grant, (*grants.join, *grants.publish))):
        raise _forbidden(f"{claim} has an invalid grant")
    return grants


def _from_words(words: Sequence[str], claim: str) -> _Grants:
    grants = _Grants()
    for word in words:
        if not word.startswith(_WORD_PREFIX):
            continue
        match word.removeprefix(_WORD_PREFIX).partition(":"):
            case "join", ":", grant:
                grants.join.append(grant)
            case "publish", ":", grant:
                grants.publish.append(grant)
            case _:
                raise _forbidden(f"{claim} has a word that begins with {_WORD_PREFIX} and is no grant")
    return grants


def _reason(error: jwt.InvalidTokenError) -> str:
    """The claim and what is wrong with it. Of PyJWT's text, only the name of a claim is used."""
    named = _TIME_CLAIM.search(str(error))
    match error:
        case jwt.MissingRequiredClaimError():
            return f"{error.claim} is missing"
        case jwt.InvalidIssuerError():
            return "iss is not GATECAST_TOKEN_ISSUER"
        case InvalidJTIError():
            return "jti has the wrong type"
        case jwt.ExpiredSignatureError():
            return "exp is in the past"
        case jwt.ImmatureSignatureError() if named:
            return f"{named[1]} is in the future"
        case jwt.InvalidIssuedAtError() | jwt.DecodeError() if named:
            return f"{named[1]} has the wrong type"
    return type(error).__name__


def _unauthorized(reason: str) -> InvalidToken:
    return InvalidToken(HTTPStatus.UNAUTHORIZED, reason)


def _forbidden(reason: str) -> InvalidToken:
    return InvalidToken(HTTPStatus.FORBIDDEN, reason)
