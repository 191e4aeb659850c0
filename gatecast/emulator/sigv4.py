"""Verifies AWS Signature Version 4 in the `Authorization` header, like execute-api.

Pure except for the clock, which is passed in. It is fast, because it runs once per post: the signing key, four of the
five HMACs, is computed once per day and credential. The canonical path is the path on the wire, URI-encoded a second
time: the `=` at the end of a connection id, `%3D` on the wire, is signed as `%253D`.

Source: "Create a signed AWS API request" in the IAM user guide, and what botocore signs.
"""

import hashlib
import hmac
import time
from calendar import timegm
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from posixpath import normpath
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote

if TYPE_CHECKING:  # not installed in ministack's environment, where `local.guarded_ministack` uses this module
    from multidict import MultiMapping

ALGORITHM: Final = "AWS4-HMAC-SHA256"
SERVICE: Final = "execute-api"
SKEW_SECONDS: Final = 300

_TIMESTAMP: Final = "%Y%m%dT%H%M%SZ"
_PARAMETERS: Final = ("Credential", "SignedHeaders", "Signature")
_SCOPE_PARTS: Final = 5


class Credentials(NamedTuple):
    """One principal's keys. If there is a session token, the caller must send the same one."""

    access_key_id: str
    secret_access_key: str
    session_token: str | None = None


class Rejection(NamedTuple):
    """Why a request is rejected: the value of `x-amzn-ErrorType`, and the message. The status is always 403."""

    error_type: str
    message: str


class Authorization(NamedTuple):
    """A parsed `Authorization` header."""

    access_key_id: str
    date: str
    region: str
    service: str
    terminator: str
    signed_headers: tuple[str, ...]
    signature: str


class Verifier:
    """Verifies requests against a set of credentials, which may change at any time (revocation, rotation).

    Without a set (None) it accepts what is signed for execute-api at all, by any key in any Region.
    """

    def __init__(
        self, credentials: Mapping[str, Credentials] | None, *, region: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._credentials = credentials
        self._region = region
        self._clock = clock

    def verify(self, method: str, target: str, headers: "MultiMapping[str]", body: bytes) -> Rejection | None:
        """None if the signature is valid. `target` is the request target on the wire: path and query."""
        header = headers.get("Authorization")
        if not header:
            return Rejection("MissingAuthenticationTokenException", "Missing Authentication Token")
        authorization = parse_authorization(header)
        if isinstance(authorization, Rejection):
            return authorization
        if self._credentials is None:
            return None if authorization.service == SERVICE else _wrong_service()
        timestamp = headers.get("X-Amz-Date", "")
        if rejection := self._check_scope(authorization, timestamp, headers):
            return rejection
        credentials = self._credentials.get(authorization.access_key_id)
        if credentials is None or (credentials.session_token or "") != headers.get("X-Amz-Security-Token", ""):
            return Rejection("UnrecognizedClientException", "The security token included in the request is invalid.")
        canonical = canonical_request(method, target, headers, authorization.signed_headers, body)
        if is_signed_with(credentials.secret_access_key, authorization, timestamp, canonical):
            return None
        return _mismatch(
            "The request signature we calculated does not match the signature you provided. Check your AWS Secret"
            " Access Key and signing method. Consult the service documentation for details."
            f"\n\nThe Canonical String for this request should have been\n'{canonical}'"
        )

    def _check_scope(
        self, authorization: Authorization, timestamp: str, headers: "MultiMapping[str]"
    ) -> Rejection | None:
        if authorization.region != self._region:
            return _mismatch(f"Credential should be scoped to a valid region, not '{authorization.region}'.")
        if authorization.service != SERVICE:
            return _wrong_service()
        if authorization.terminator != "aws4_request":
            return _mismatch("Credential should be scoped with a valid terminator: 'aws4_request'.")
        if "host" not in authorization.signed_headers:
            return _mismatch("'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.")
        if "X-Amz-Security-Token" in headers and "x-amz-security-token" not in authorization.signed_headers:
            return _mismatch("'X-Amz-Security-Token' must be a 'SignedHeader' in the AWS Authorization.")
        return check_date(authorization.date, timestamp, self._clock())


def canonical_request(
    method: str, target: str, headers: "MultiMapping[str]", signed_headers: tuple[str, ...], body: bytes
) -> str:
    """The canonical request that both sides sign, for all services but S3."""
    path, _, query = target.partition("?")
    signed = [(name, headers.getall(name, [])) for name in signed_headers]
    return canonical_text(method, canonical_path(path), query, signed, body_hash(body))


def canonical_text(
    method: str, path: str, query: str, signed: Iterable[tuple[str, Sequence[str]]], payload_hash: str
) -> str:
    """The canonical request with this canonical path. `signed` are the signed headers: names and their values."""
    lines = [(name, _header_value(values)) for name, values in signed]
    return "\n".join(
        (
            method,
            path,
            "&".join("=".join(pair) for pair in sorted(_pairs(query))) if query else "",
            *(f"{name}:{value}" for name, value in lines),
            "",
            ";".join(name for name, _ in lines),
            payload_hash,
        )
    )


def canonical_path(path: str) -> str:
    """The canonical path of the path on the wire, for all services but S3."""
    return quote(_bytes(_normalized(path)), safe="/~")


def body_hash(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def sign(
    method: str, path: str, body: bytes, *, host: str, service: str, region: str, credentials: Credentials, now: float
) -> dict[str, str]:
    """The headers of a signed request without a query; `path` is that on the wire, `now` the time since the epoch."""
    timestamp = time.strftime(_TIMESTAMP, time.gmtime(now))
    headers = {"Host": host, "X-Amz-Date": timestamp}
    if credentials.session_token:
        headers["X-Amz-Security-Token"] = credentials.session_token
    names = tuple(sorted(name.lower() for name in headers))
    authorization = Authorization(
        credentials.access_key_id, timestamp[:8], region, service, "aws4_request", names, signature=""
    )
    values = {name.lower(): [value] for name, value in headers.items()}
    canonical = canonical_text(
        method, canonical_path(path), "", [(name, values[name]) for name in names], body_hash(body)
    )
    signature = _signature(credentials.secret_access_key, authorization, timestamp, canonical)
    scope = f"{authorization.date}/{region}/{service}/aws4_request"
    parts = {
        "Credential": f"{credentials.access_key_id}/{scope}",
        "SignedHeaders": ";".join(names),
        "Signature": signature,
    }
    return {**headers, "Authorization": f"{ALGORITHM} {', '.join(f'{key}={value}' for key, value in parts.items())}"}


def is_signed_with(secret: str, authorization: Authorization, timestamp: str, canonical: str) -> bool:
    """Whether this secret made the signature of the canonical request."""
    expected = _signature(secret, authorization, timestamp, canonical)
    return hmac.compare_digest(expected.encode(), _bytes(authorization.signature))


def parse_authorization(header: str) -> Authorization | Rejection:
    """The parsed header, or why it is malformed."""
    algorithm, _, rest = header.partition(" ")
    if algorithm != ALGORITHM:
        return _incomplete(f"Unsupported AWS 'algorithm': '{algorithm}'")
    found = dict(part.strip().partition("=")[::2] for part in rest.split(","))
    if missing := [name for name in _PARAMETERS if not found.get(name)]:
        return _incomplete(" ".join(f"Authorization header requires '{name}' parameter." for name in missing))
    scope = found["Credential"].rsplit("/", _SCOPE_PARTS - 1)
    if len(scope) != _SCOPE_PARTS:
        return _incomplete(f"Credential must have exactly {_SCOPE_PARTS} slash-delimited elements.")
    key_id, date, region, service, terminator = scope
    signed_headers = tuple(found["SignedHeaders"].split(";"))
    return Authorization(key_id, date, region, service, terminator, signed_headers, found["Signature"])


def check_date(scope_date: str, timestamp: str, now: float) -> Rejection | None:
    """Why a signature of that date and time is not valid now, or None if it is."""
    signed_at = _epoch(timestamp)
    if signed_at is None:
        return _incomplete(f"Authorization header requires existence of a valid 'X-Amz-Date', not '{timestamp}'.")
    if not timestamp.startswith(scope_date):
        return _mismatch(
            "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP:"
            f" '{scope_date}' != '{timestamp[:8]}', from '{timestamp}'."
        )
    here = time.strftime(_TIMESTAMP, time.gmtime(now))
    if signed_at < now - SKEW_SECONDS:
        return _mismatch(f"Signature expired: {timestamp} is now earlier than {here} - 5 min.")
    if signed_at > now + SKEW_SECONDS:
        return _mismatch(f"Signature not yet current: {timestamp} is still later than {here} + 5 min.")
    return None


def _signature(secret: str, authorization: Authorization, timestamp: str, canonical: str) -> str:
    scope = f"{authorization.date}/{authorization.region}/{authorization.service}/aws4_request"
    digest = hashlib.sha256(_bytes(canonical)).hexdigest()
    to_sign = f"{ALGORITHM}\n{timestamp}\n{scope}\n{digest}"
    key = _signing_key(secret, authorization.date, authorization.region, authorization.service)
    return hmac.digest(key, _bytes(to_sign), "sha256").hex()


@lru_cache(maxsize=64)
def _signing_key(secret: str, date: str, region: str, service: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac.digest(key, _bytes(part), "sha256")
    return key


@lru_cache(maxsize=64)
def _epoch(timestamp: str) -> int | None:
    try:
        return timegm(time.strptime(timestamp, _TIMESTAMP))
    except ValueError:
        return None


def _normalized(path: str) -> str:
    if "//" not in path and "/." not in path:
        return path or "/"
    cleaned = "/" + normpath(path).lstrip("/")
    return f"{cleaned}/" if path.endswith("/") and cleaned != "/" else cleaned


def _bytes(text: str) -> bytes:
    """The bytes on the wire, which need not be valid UTF-8."""
    return text.encode("utf-8", "surrogateescape")


def _pairs(query: str) -> list[tuple[str, str]]:
    return [pair.partition("=")[::2] for pair in query.split("&")]


def _header_value(values: Sequence[str]) -> str:
    return ",".join(" ".join(value.split()) for value in values)


def _wrong_service() -> Rejection:
    return _mismatch(f"Credential should be scoped to correct service: '{SERVICE}'.")


def _mismatch(message: str) -> Rejection:
    return Rejection("InvalidSignatureException", message)


def _incomplete(message: str) -> Rejection:
    return Rejection("IncompleteSignatureException", message)
