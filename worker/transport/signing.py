"""AWS Signature Version 4 for many requests that differ in little: byte for byte what botocore signs.

Almost all of a signature is the same for every post of one broadcast in one second. What stays the same is hashed
once and the hash objects are copied: the day's signing key (HMAC's inner and outer SHA-256), the fixed start of the
string to sign, the canonical request up to the connection id. A post then costs two short hashes and one join.

On the wire an id is percent-encoded (`ID%3D`); in the canonical path that is encoded once more (`ID%253D`).
Source: AWS General Reference, "Signing AWS API requests"; checked against botocore.auth.SigV4Auth by a property test.
"""

import hashlib
import re
import time
from dataclasses import dataclass
from typing import Final, NamedTuple
from urllib.parse import quote, urlsplit

_UNUSUAL: Final = re.compile(r"[^A-Za-z0-9_\-=]")
_EMPTY_QUERY: Final = ""


class Credentials(NamedTuple):
    """What botocore calls frozen credentials."""

    access_key: str
    secret_key: str
    token: str | None = None


@dataclass(frozen=True, slots=True)
class Address:
    """Where requests go: `host` as the Host header says it (with the port, unless it is the scheme's own)."""

    scheme: str
    hostname: str
    port: int
    host: str
    path: str

    @classmethod
    def of(cls, url: str) -> "Address":
        """`url` is http:// or https://; its path keeps no slash at the end."""
        parts = urlsplit(url)
        hostname = parts.hostname or ""
        default = 443 if parts.scheme == "https" else 80
        port = parts.port or default
        host = f"[{hostname}]" if ":" in hostname else hostname
        return cls(parts.scheme, hostname, port, host if port == default else f"{host}:{port}", parts.path.rstrip("/"))


def wire_id(connection_id: str) -> str:
    """The id as one segment of a path. Dots alone are encoded, too: as they are they would climb up the path."""
    quoted = quote(connection_id, safe="")
    return quoted.replace(".", "%2E") if quoted in (".", "..") else quoted


class SigningKey:
    """The signing key of one day, Region and service, as two SHA-256 states: HMAC without its set-up."""

    def __init__(self, credentials: Credentials, scope: str) -> None:
        key = ("AWS4" + credentials.secret_key).encode()
        for component in scope.split("/"):
            inner, outer = _hmac_states(key)
            inner.update(component.encode())
            outer.update(inner.digest())
            key = outer.digest()
        self.inner, self.outer = _hmac_states(key)


def _hmac_states(key: bytes) -> "tuple[hashlib._Hash, hashlib._Hash]":
    block = (hashlib.sha256(key).digest() if len(key) > 64 else key).ljust(64, b"\0")  # noqa: PLR2004 - SHA-256's block
    return (
        hashlib.sha256(bytes(byte ^ 0x36 for byte in block)),
        hashlib.sha256(bytes(byte ^ 0x5C for byte in block)),
    )


class Signer:
    """Signs requests to one address for one service. Call `use` whenever credentials may have changed."""

    def __init__(self, address: Address, region: str, service: str) -> None:
        self.address = address
        self._region = region
        self._service = service
        self._credentials: Credentials | None = None
        self._day = ""
        self._key: SigningKey | None = None
        self._second = -1
        self.generation = 0
        """Changes with the credentials: what was prepared under another one must be prepared again."""

    @property
    def ready(self) -> bool:
        return self._credentials is not None

    def use(self, credentials: Credentials) -> None:
        if credentials != self._credentials:
            self._credentials = credentials
            self._day = ""
            self._second = -1
            self.generation += 1

    def prepare(
        self, path: str, headers: dict[str, str], payload: bytes, second: int, *, method: str = "POST"
    ) -> "Prepared":
        """What is the same for all requests whose paths start with `path` (canonical form is derived), in one second.

        `headers` are signed beside host and date; names lower case. `second` is whole seconds since the epoch.
        Raises RuntimeError before the first `use`.
        """
        if self._credentials is None:
            raise RuntimeError("no credentials yet")
        if second != self._second:
            self._set_second(second)
        assert self._key is not None  # noqa: S101 - _set_second has made it
        signed = {"host": self.address.host, "x-amz-date": self._date, **headers}
        if self._credentials.token:
            signed["x-amz-security-token"] = self._credentials.token
        names = sorted(signed)
        signed_names = ";".join(names)
        canonical_tail = (
            f"\n{_EMPTY_QUERY}\n"
            + "".join(f"{name}:{' '.join(signed[name].split())}\n" for name in names)
            + f"\n{signed_names}\n{hashlib.sha256(payload).hexdigest()}"
        )
        head = "".join(f"{name}: {signed[name]}\r\n" for name in names)
        authorization = (
            f"AWS4-HMAC-SHA256 Credential={self._credentials.access_key}/{self._scope}, "
            f"SignedHeaders={signed_names}, Signature="
        )
        inner = self._key.inner.copy()
        inner.update(f"AWS4-HMAC-SHA256\n{self._date}\n{self._scope}\n".encode())
        return Prepared(
            canonical_start=hashlib.sha256(f"{method}\n{quote(path, safe='/~')}".encode()),
            canonical_tail=canonical_tail.encode(),
            inner=inner,
            outer=self._key.outer,
            before_id=f"{method} {path}".encode(),
            before_signature=(
                f" HTTP/1.1\r\n{head}content-length: {len(payload)}\r\nauthorization: {authorization}"
            ).encode(),
            after_signature=b"\r\n\r\n" + payload,
        )

    def _set_second(self, second: int) -> None:
        assert self._credentials is not None  # noqa: S101 - the caller has looked
        self._second = second
        self._date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))
        day = self._date[:8]
        if day != self._day:
            self._day = day
            self._scope = f"{day}/{self._region}/{self._service}/aws4_request"
            self._key = SigningKey(self._credentials, self._scope)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request but for the last segment of its path and what depends on that."""

    canonical_start: "hashlib._Hash"
    canonical_tail: bytes
    inner: "hashlib._Hash"
    outer: "hashlib._Hash"
    before_id: bytes
    before_signature: bytes
    after_signature: bytes

    def request(self, connection_id: str = "") -> bytes:
        """The whole request, head and body, for the path that was prepared followed by this id."""
        segment = wire_id(connection_id) if _UNUSUAL.search(connection_id) else connection_id.replace("=", "%3D")
        canonical = self.canonical_start.copy()
        canonical.update(segment.replace("%", "%25").encode())
        canonical.update(self.canonical_tail)
        inner = self.inner.copy()
        inner.update(canonical.hexdigest().encode())
        outer = self.outer.copy()
        outer.update(inner.digest())
        return b"".join(
            (
                self.before_id,
                segment.encode(),
                self.before_signature,
                outer.hexdigest().encode(),
                self.after_signature,
            )
        )
