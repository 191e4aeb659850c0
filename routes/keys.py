"""The keys that verify tokens: a secret in AWS Secrets Manager, or the public keys at a JWKS address.

Both may change at any time. Keys are therefore cached for five minutes, and fetched again if a token matches none of
them, but at most every 30 s: forged tokens cannot make this process overload the source. A new key may therefore be
unknown for up to 30 s, unless the issuer publishes it before signing with it. While the source is unavailable, cached
keys remain valid for up to a day, and no longer: otherwise a revoked key would stay valid for as long as an attacker
can keep the source unreachable.

PyJWT's own client, PyJWKClient, neither keeps stale keys nor has a cooldown after failures.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

import jwt
import urllib3
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, SECP521R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import HMACAlgorithm

from gatecast import __version__
from routes.environment import ConfigurationError, url_problem
from routes.log import log_failure

CACHE_SECONDS: Final = 300.0
COOLDOWN_SECONDS: Final = 30.0
RETRY_SECONDS: Final = 1.0
"""The cooldown while no keys are cached."""
STALE_GRACE_SECONDS: Final = 24 * 3600.0
PREVIOUS_SECRET_GRACE_SECONDS: Final = 24 * 3600.0
"""How long the previous secret stays valid after a rotation: longer than tokens live, but not until the next one."""
MIN_SECRET_BYTES: Final = 32
MIN_RSA_BITS: Final = 2_048
MAX_JWKS_BYTES: Final = 65_536
USER_AGENT: Final = f"gatecast/{__version__}"
"""Some issuers reject requests without one, or with that of an HTTP library."""

_RSA_ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")


class Key(NamedTuple):
    """What verifies a signature, and the only algorithms with which it does."""

    material: bytes | RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey
    algorithms: tuple[str, ...]
    id: str | None = None


_Value = TypeVar("_Value")


class KeysUnavailable(Exception):
    """No keys are cached, and none could be fetched."""


class Keys(Protocol):
    """A source of keys. The kind of key determines the algorithms, never a token."""

    algorithms: tuple[str, ...]
    """Those of all keys that the source can have: a token with any other needs no key."""

    def candidates(self, kid: str | None) -> Sequence[Key]:
        """The keys that may have signed a token with this key id. Raises KeysUnavailable."""

    def refresh(self) -> bool:
        """Fetches the keys again, unless that was attempted recently. Whether they were fetched."""


class Cached(Generic[_Value]):
    """The last result of `fetch`. Ages are wall-clock time: the monotonic clock may stop while Lambda is frozen."""

    def __init__(self, fetch: Callable[[], _Value], clock: Callable[[], float] = time.time) -> None:
        self._fetch = fetch
        self._clock = clock
        self._entry: tuple[_Value, float] | None = None
        self._attempted_at = float("-inf")
        self._lock = threading.RLock()

    def get(self) -> _Value:
        """The cached value, fetched again after CACHE_SECONDS. Raises KeysUnavailable."""
        with self._lock:
            if not self._is_younger_than(CACHE_SECONDS):
                self.refresh()
            if self._entry is None or not self._is_younger_than(STALE_GRACE_SECONDS):
                raise KeysUnavailable
            return self._entry[0]

    def refresh(self) -> bool:
        """Whether the value was fetched: False during the cooldown, or if fetching fails, which is logged."""
        with self._lock:
            now = self._clock()
            if 0 <= now - self._attempted_at < (COOLDOWN_SECONDS if self._entry else RETRY_SECONDS):
                return False
            self._attempted_at = now
            try:
                self._entry = (self._fetch(), now)
            except Exception as error:  # noqa: BLE001 - the cached value stays valid, whatever the error
                log_failure("keys.not_fetched", error)
                return False
            return True

    def _is_younger_than(self, seconds: float) -> bool:
        return self._entry is not None and 0 <= self._clock() - self._entry[1] < seconds


class SharedSecret:
    """HS256 with a secret: the unmodified text or bytes of version AWSCURRENT, and of AWSPREVIOUS for a day."""

    algorithms: tuple[str, ...] = ("HS256",)

    def __init__(self, secrets_manager: Any, arn: str, clock: Callable[[], float] = time.time) -> None:
        """`secrets_manager` is a boto3 client."""
        self._secrets_manager = secrets_manager
        self._arn = arn
        self._clock = clock
        self._cached = Cached(self._fetch, clock)

    def candidates(self, kid: str | None) -> Sequence[Key]:  # noqa: ARG002 - tokens signed with a secret need no key id
        return self._cached.get()

    def refresh(self) -> bool:
        return self._cached.refresh()

    def _fetch(self) -> tuple[Key, ...]:
        current = self._secret_version("AWSCURRENT")
        secrets = [_validated_secret(current)]
        if self._clock() - current["CreatedDate"].timestamp() < PREVIOUS_SECRET_GRACE_SECONDS:
            # it does not exist before the first rotation, and may have been rotated because it was invalid
            with contextlib.suppress(self._secrets_manager.exceptions.ResourceNotFoundException, ConfigurationError):
                secrets.append(_validated_secret(self._secret_version("AWSPREVIOUS")))
        return tuple(Key(secret, self.algorithms) for secret in secrets)

    def _secret_version(self, stage: str) -> dict[str, Any]:
        version: dict[str, Any] = self._secrets_manager.get_secret_value(SecretId=self._arn, VersionStage=stage)
        return version


class PublicKeys:
    """The public keys at an https address. A token must name its key (`kid`), and the key determines the algorithm:

    | key | algorithm |
    |---|---|
    | RSA, 2,048 bits or more | its `alg`; without one RS256, RS384, RS512, PS256, PS384 or PS512, as the token says |
    | EC on P-256, P-384, P-521 | ES256, ES384, ES512 |
    | Ed25519 | EdDSA |
    """

    algorithms: tuple[str, ...] = (*_RSA_ALGORITHMS, "ES256", "ES384", "ES512", "EdDSA")

    def __init__(
        self, url: str, http: urllib3.PoolManager | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """Raises ConfigurationError if the address is invalid (`check_jwks_url`). `http` verifies certificates."""
        check_jwks_url(url)
        self._url = url
        self._http = http or urllib3.PoolManager(timeout=urllib3.Timeout(connect=2.0, read=3.0), retries=False)
        self._cached = Cached(self._fetch, clock)

    def candidates(self, kid: str | None) -> Sequence[Key]:
        return [key for key in self._cached.get() if kid and key.id == kid]

    def refresh(self) -> bool:
        return self._cached.refresh()

    def _fetch(self) -> tuple[Key, ...]:
        """Follows no redirects: the response would come from an address that is not configured."""
        headers = {"User-Agent": USER_AGENT, "Accept": "application/json"}
        response = self._http.request("GET", self._url, headers=headers, redirect=False, preload_content=False)
        try:
            if response.status != HTTPStatus.OK:
                raise ConfigurationError(f"the JWKS address responds with status {response.status}")
            body = response.read(MAX_JWKS_BYTES + 1)
        finally:
            response.close()
        if len(body) > MAX_JWKS_BYTES:
            raise ConfigurationError(f"the JWKS is longer than {MAX_JWKS_BYTES:,} bytes")
        keys = tuple(key for each in json.loads(body)["keys"] if (key := _usable_key(each)))
        if not keys:
            raise ConfigurationError(f"the JWKS has no usable key: expected a kid, and {', '.join(self.algorithms)}")
        return keys


def _validated_secret(version: dict[str, Any]) -> bytes:
    """The version's secret. Raises ConfigurationError if it is too short, or a key that is not secret."""
    secret: bytes = version["SecretString"].encode() if "SecretString" in version else version["SecretBinary"]
    if len(secret) < MIN_SECRET_BYTES:
        raise ConfigurationError(f"the secret is shorter than {MIN_SECRET_BYTES} bytes")
    try:
        return HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
    except jwt.InvalidKeyError:
        raise ConfigurationError("the secret is a public key, a certificate or a JWK") from None


def check_jwks_url(url: str) -> None:
    """Raises ConfigurationError, which does not quote it, unless it is https, or http to this machine, and plain."""
    if reason := url_problem(url):
        raise ConfigurationError(f"GATECAST_TOKEN_JWKS_URL {reason}: expected https://{{host}}/{{path}}")


def _usable_key(jwk: Any) -> Key | None:
    """The key, if it is a public signature key with an id and strong enough; None otherwise.

    A set may contain other keys, which must not make the whole set invalid, as some do with PyJWKSet. An `oct` key in
    a JWKS is a secret that anyone can read.
    """
    try:
        key = jwt.PyJWK(jwk)
        algorithm = jwk.get("alg")
    except Exception:  # noqa: BLE001 - anything that cannot be parsed is not a usable key
        return None
    if not isinstance(key.key_id, str) or not key.key_id or key.public_key_use not in (None, "sig"):
        return None
    allowed = tuple(name for name in _algorithms(key.key) if algorithm in (None, name))
    return Key(key.key, allowed, key.key_id) if allowed else None


def _algorithms(key: Any) -> tuple[str, ...]:
    """The algorithms for which this key is suitable; none if it is private, secret, too short or on another curve."""
    match key:
        case RSAPublicKey(key_size=bits) if bits >= MIN_RSA_BITS:
            return _RSA_ALGORITHMS
        case EllipticCurvePublicKey(curve=SECP256R1()):
            return ("ES256",)
        case EllipticCurvePublicKey(curve=SECP384R1()):
            return ("ES384",)
        case EllipticCurvePublicKey(curve=SECP521R1()):
            return ("ES512",)
        case Ed25519PublicKey():
            return ("EdDSA",)
    return ()
