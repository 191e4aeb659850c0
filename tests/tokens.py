"""A token issuer for tests, valid tokens that tests can corrupt, and fakes of the key sources."""

import base64
import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ISSUER = "https://issuer.example/"
AUDIENCE = "gatecast"
SECRET = "the secret of this issuer, 32 bytes or more"
PREVIOUS_SECRET = "the secret before that, 32 bytes or more, too"


@cache
def rsa_key(kid: str, bits: int = 2_048) -> rsa.RSAPrivateKey:  # noqa: ARG001 - one key for each kid
    return rsa.generate_private_key(65_537, bits)


def ec_key(kid: str, curve: type[ec.EllipticCurve] = ec.SECP256R1) -> ec.EllipticCurvePrivateKey:
    return _ec_key(kid, curve)


@cache
def _ec_key(kid: str, curve: type[ec.EllipticCurve]) -> ec.EllipticCurvePrivateKey:  # noqa: ARG001 - as above
    return ec.generate_private_key(curve())


@cache
def ed_key(kid: str) -> ed25519.Ed25519PrivateKey:  # noqa: ARG001 - as above
    return ed25519.Ed25519PrivateKey.generate()


def rsa_jwk(kid: str, **fields: Any) -> dict[str, Any]:
    return {**RSAAlgorithm.to_jwk(rsa_key(kid).public_key(), as_dict=True), "kid": kid, "use": "sig", **fields}


def ec_jwk(kid: str, curve: type[ec.EllipticCurve] = ec.SECP256R1, **fields: Any) -> dict[str, Any]:
    return {**ECAlgorithm.to_jwk(ec_key(kid, curve).public_key(), as_dict=True), "kid": kid, "use": "sig", **fields}


def ed_jwk(kid: str, **fields: Any) -> dict[str, Any]:
    return {**OKPAlgorithm.to_jwk(ed_key(kid).public_key(), as_dict=True), "kid": kid, "use": "sig", **fields}


def public_pem(kid: str) -> bytes:
    return rsa_key(kid).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def claims(**changed: Any) -> dict[str, Any]:
    """Valid claims, some of them changed; a change to `...` omits the claim."""
    now = int(time.time())
    good = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "alice",
        "iat": now,
        "exp": now + 600,
        "gatecast": {"join": ["lobby", "chat/*"], "publish": ["chat/*"]},
    }
    return {name: value for name, value in {**good, **changed}.items() if value is not ...}


def signed(
    payload: Mapping[str, Any] | bytes,
    key: Any,
    alg: str,
    header: Mapping[str, Any] | bytes | None = None,
) -> str:
    """A token with this header (added to `typ` and `alg`) and payload; bytes are used unchanged."""
    head = header if isinstance(header, bytes) else _json({"typ": "JWT", "alg": alg, **(header or {})})
    body = payload if isinstance(payload, bytes) else _json(payload)
    text = f"{encoded(head)}.{encoded(body)}"
    return f"{text}.{encoded(jwt.get_algorithm_by_name(alg).sign(text.encode(), key))}"


def rs256(kid: str = "rsa", **changed: Any) -> str:
    return signed(claims(**changed), rsa_key(kid), "RS256", {"kid": kid})


def es256(kid: str = "ec", **changed: Any) -> str:
    return signed(claims(**changed), ec_key(kid), "ES256", {"kid": kid})


def hs256(secret: str = SECRET, **changed: Any) -> str:
    return signed(claims(**changed), secret.encode(), "HS256")


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode()


class Response:
    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self._body = body

    def read(self, length: int) -> bytes:
        return self._body[:length]

    def close(self) -> None:
        pass


class JwksEndpoint:
    """Replaces urllib3 in `PublicKeys`. `respond` returns status and body, or raises."""

    def __init__(self, *keys: dict[str, Any]) -> None:
        self.requests = 0
        self.user_agents: set[str] = set()
        self.respond: Callable[[], tuple[int, bytes]] = lambda: (200, b"")
        self.serve(*keys)

    def serve(self, *keys: dict[str, Any]) -> None:
        body = _json({"keys": list(keys)})
        self.respond = lambda: (200, body)

    def fail_requests(self) -> None:
        def fail() -> tuple[int, bytes]:
            raise TimeoutError

        self.respond = fail

    def request(
        self, method: str, url: str, *, headers: Mapping[str, str], redirect: bool, preload_content: bool
    ) -> Response:
        assert (method, url[:8], redirect, preload_content) == ("GET", "https://", False, False)
        self.requests += 1
        self.user_agents.add(headers["User-Agent"])
        return Response(*self.respond())


class SecretsManager:
    """Replaces boto3's client in `SharedSecret`: the secret's versions by stage."""

    class exceptions:  # noqa: N801 - boto3's name
        class ResourceNotFoundException(Exception):
            pass

    def __init__(self, current: str | bytes, previous: str | bytes | None = None, *, rotated_at: float = 0.0) -> None:
        self.versions = {"AWSCURRENT": current, "AWSPREVIOUS": previous}
        self.rotated_at = rotated_at
        self.failure: Exception | None = None
        self.requests = 0

    def get_secret_value(self, *, SecretId: str, VersionStage: str) -> dict[str, Any]:  # noqa: N803 - boto3's names
        assert SecretId == "arn:secret"
        self.requests += 1
        if self.failure:
            raise self.failure
        value = self.versions[VersionStage]
        if value is None:
            raise self.exceptions.ResourceNotFoundException
        created = datetime.fromtimestamp(self.rotated_at, UTC)
        return {"SecretString" if isinstance(value, str) else "SecretBinary": value, "CreatedDate": created}
