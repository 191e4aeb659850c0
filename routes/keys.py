"""The keys that tokens are verified with: a secret in AWS Secrets Manager, or the public keys at a JWKS address.

Both change while this runs. So keys are kept for five minutes, and asked for again when a token fits none of them, but
never more often than every 30 s: whoever sends tokens of their own making cannot make us hammer the source. A key that
is brand-new may so be unknown for half a minute; an issuer that publishes keys before it signs with them avoids it.
While the source is down, the keys that are held go on counting, for a day at most: a key that was withdrawn must not
live as long as somebody can keep the source out of reach.

PyJWT's own client, PyJWKClient, does neither the last nor, after failures, the one before it.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, Final, Generic, Protocol, TypeVar
from urllib.parse import urlsplit

import jwt
import urllib3
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import HMACAlgorithm

from routes.environment import ConfigurationError
from routes.log import log_failure

KEPT_SECONDS: Final = 300.0
COOLDOWN_SECONDS: Final = 30.0
RETRY_SECONDS: Final = 1.0
"""The cooldown while there are no keys at all."""
OUTLIVES_SOURCE_SECONDS: Final = 24 * 3600.0
PREVIOUS_COUNTS_SECONDS: Final = 24 * 3600.0
"""How long after a rotation the secret before it counts: longer than tokens live, and not until the next rotation."""
MIN_SECRET_BYTES: Final = 32
MIN_RSA_BITS: Final = 2_048
MAX_JWKS_BYTES: Final = 65_536

Key = bytes | jwt.PyJWK
_Held = TypeVar("_Held")


class KeysUnavailable(Exception):  # noqa: N818 - it says what is wrong
    """There are no keys, and none can be had now."""


class Keys(Protocol):
    """Where keys come from. The algorithms are fixed by what they are, never by a token."""

    algorithms: tuple[str, ...]

    def candidates(self, kid: str | None) -> Sequence[Key]:
        """The keys that may have signed a token with this key id. Raises KeysUnavailable."""

    def refresh(self) -> bool:
        """Asks the source again, unless that was done just now. Whether there are new answers."""


class Cached(Generic[_Held]):
    """What `fetch` returned last. Ages are wall-clock time: a frozen Lambda environment's monotonic clock may stand."""

    def __init__(self, fetch: Callable[[], _Held], clock: Callable[[], float] = time.time) -> None:
        self._fetch = fetch
        self._clock = clock
        self._held: tuple[_Held, float] | None = None
        self._tried_at = float("-inf")
        self._lock = threading.RLock()

    def get(self) -> _Held:
        with self._lock:
            if not self._younger_than(KEPT_SECONDS):
                self.refresh()
            if self._held is None or not self._younger_than(OUTLIVES_SOURCE_SECONDS):
                raise KeysUnavailable
            return self._held[0]

    def refresh(self) -> bool:
        """Whether it was fetched: not if that was tried too short a time ago, or fails, which is logged."""
        with self._lock:
            now = self._clock()
            if 0 <= now - self._tried_at < (COOLDOWN_SECONDS if self._held else RETRY_SECONDS):
                return False
            self._tried_at = now
            try:
                self._held = (self._fetch(), now)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with the source, what is held still counts
                log_failure("keys.not_fetched", error)
                return False
            return True

    def _younger_than(self, seconds: float) -> bool:
        return self._held is not None and 0 <= self._clock() - self._held[1] < seconds


class SharedSecret:
    """HS256 with a secret: the text or bytes of its version AWSCURRENT, as they are, and of AWSPREVIOUS for a day."""

    algorithms: tuple[str, ...] = ("HS256",)

    def __init__(self, secrets_manager: Any, arn: str, clock: Callable[[], float] = time.time) -> None:
        """`secrets_manager` is a boto3 client."""
        self._secrets_manager = secrets_manager
        self._arn = arn
        self._clock = clock
        self._cached = Cached(self._fetch, clock)

    def candidates(self, kid: str | None) -> Sequence[bytes]:  # noqa: ARG002 - a secret's tokens need not name it
        return self._cached.get()

    def refresh(self) -> bool:
        return self._cached.refresh()

    def _fetch(self) -> tuple[bytes, ...]:
        current = self._version("AWSCURRENT")
        secrets = [_checked(current)]
        if self._clock() - current["CreatedDate"].timestamp() < PREVIOUS_COUNTS_SECONDS:
            # there is none before the first rotation, and a bad one may be why it was rotated
            with contextlib.suppress(self._secrets_manager.exceptions.ResourceNotFoundException, ConfigurationError):
                secrets.append(_checked(self._version("AWSPREVIOUS")))
        return tuple(secrets)

    def _version(self, stage: str) -> dict[str, Any]:
        version: dict[str, Any] = self._secrets_manager.get_secret_value(SecretId=self._arn, VersionStage=stage)
        return version


class PublicKeys:
    """RS256 and ES256 with the keys at an https address. A token must name its key, and a key has one algorithm."""

    algorithms: tuple[str, ...] = ("RS256", "ES256")

    def __init__(
        self, url: str, http: urllib3.PoolManager | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """Raises ConfigurationError for an address that is not https. `http` verifies certificates."""
        address = urlsplit(url)
        if address.scheme != "https" or not address.hostname or address.username is not None:
            raise ConfigurationError("the address of the JWKS must be https://…")
        self._url = url
        self._http = http or urllib3.PoolManager(timeout=urllib3.Timeout(connect=2.0, read=3.0), retries=False)
        self._cached = Cached(self._fetch, clock)

    def candidates(self, kid: str | None) -> Sequence[jwt.PyJWK]:
        return [key for key in self._cached.get() if kid and key.key_id == kid]

    def refresh(self) -> bool:
        return self._cached.refresh()

    def _fetch(self) -> tuple[jwt.PyJWK, ...]:
        """Follows no redirect: the answer would come from an address that nobody has configured."""
        answer = self._http.request("GET", self._url, redirect=False, preload_content=False)
        try:
            if answer.status != HTTPStatus.OK:
                raise ConfigurationError(f"the JWKS address answers with status {answer.status}")
            body = answer.read(MAX_JWKS_BYTES + 1)
        finally:
            answer.close()
        if len(body) > MAX_JWKS_BYTES:
            raise ConfigurationError(f"the JWKS is longer than {MAX_JWKS_BYTES:,} bytes")
        keys = tuple(key for each in json.loads(body)["keys"] if (key := _verifying_key(each)))
        if not keys:
            raise ConfigurationError("the JWKS has no key with a kid for RS256 or ES256")
        return keys


def _checked(version: dict[str, Any]) -> bytes:
    """Raises ConfigurationError for what must not be a secret."""
    secret: bytes = version["SecretString"].encode() if "SecretString" in version else version["SecretBinary"]
    if len(secret) < MIN_SECRET_BYTES:
        raise ConfigurationError(f"the secret is shorter than {MIN_SECRET_BYTES} bytes")
    try:
        return HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
    except jwt.InvalidKeyError:
        raise ConfigurationError("the secret is a public key, a certificate or a JWK") from None


def _verifying_key(jwk: Any) -> jwt.PyJWK | None:
    """The key, if it is a public one to verify signatures with that can be named, and strong enough.

    A set may hold others, which must not spoil it, as some do with PyJWKSet. An `oct` key in a JWKS is a secret that
    all can read.
    """
    try:
        key = jwt.PyJWK(jwk)
    except Exception:  # noqa: BLE001 - whatever it is, it is no key of ours
        return None
    if not isinstance(key.key_id, str) or not key.key_id or key.public_key_use not in (None, "sig"):
        return None
    match key.algorithm_name, key.key:
        case "RS256", RSAPublicKey(key_size=bits) if bits >= MIN_RSA_BITS:
            return key
        case "ES256", EllipticCurvePublicKey(curve=SECP256R1()):
            return key
    return None
