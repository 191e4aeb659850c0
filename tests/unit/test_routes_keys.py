"""Keys are cached, refreshed, and stay valid while their source is down, each for a limited time."""

import io
import json
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from gatecast import __version__
from routes.environment import ConfigurationError
from routes.keys import Cached, Key, KeysUnavailable, PublicKeys, SharedSecret
from tests.routes_events import captured_log
from tests.tokens import (
    PREVIOUS_SECRET,
    SECRET,
    JwksEndpoint,
    SecretsManager,
    ec_jwk,
    ed_jwk,
    public_pem,
    rsa_jwk,
    rsa_key,
)

DAY = 24 * 3600.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    with captured_log() as stream:
        yield stream


def public_keys(endpoint: JwksEndpoint, clock: Clock) -> PublicKeys:
    return PublicKeys("https://issuer.example/jwks.json", endpoint, clock)  # type: ignore[arg-type]  # a stand-in


def test_fetched_value_is_cached_for_five_minutes(clock: Clock) -> None:
    fetched = iter(range(10))
    cached = Cached(lambda: next(fetched), clock)
    assert [cached.get(), cached.get()] == [0, 0]
    clock.now += 299
    assert cached.get() == 0
    clock.now += 1
    assert cached.get() == 1


def test_refresh_happens_at_most_every_30_seconds(clock: Clock) -> None:
    fetched = iter(range(10))
    cached = Cached(lambda: next(fetched), clock)
    assert cached.get() == 0
    clock.now += 29
    assert not cached.refresh()
    clock.now += 1
    assert cached.refresh()
    assert not cached.refresh()
    assert cached.get() == 1


def test_clock_stepping_back_invalidates_the_cache(clock: Clock) -> None:
    fetched = iter(range(10))
    cached = Cached(lambda: next(fetched), clock)
    cached.get()
    clock.now -= DAY
    assert cached.get() == 1


def test_cached_keys_stay_valid_for_a_day_while_the_source_is_down(clock: Clock, log: io.StringIO) -> None:
    attempts = 0

    def fetch() -> str:
        nonlocal attempts
        attempts += 1
        if attempts > 1:
            raise TimeoutError("what-the-source-said")
        return "key"

    cached = Cached(fetch, clock)
    assert cached.get() == "key"
    clock.now += 300
    assert [cached.get(), cached.get(), cached.refresh()] == ["key", "key", False]
    assert attempts == 2
    clock.now += 30
    assert cached.get() == "key"
    assert attempts == 3
    clock.now += DAY - 330
    with pytest.raises(KeysUnavailable):
        cached.get()
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert {(line["message"], line["error"]) for line in lines} == {("keys.not_fetched", "TimeoutError")}
    assert "what-the-source-said" not in log.getvalue()


@pytest.mark.usefixtures("log")
def test_without_cached_keys_the_source_is_retried_after_a_second(clock: Clock) -> None:
    attempts = 0

    def fetch() -> str:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise TimeoutError
        return "key"

    cached = Cached(fetch, clock)
    for _ in range(5):
        with pytest.raises(KeysUnavailable):
            cached.get()
    assert attempts == 1
    clock.now += 1
    with pytest.raises(KeysUnavailable):
        cached.get()
    clock.now += 1
    assert cached.get() == "key"
    assert attempts == 3


PATH = "contains a space, a line break or a character that is not ASCII"
SCHEME = "does not begin with https://"
INVALID = "is not a valid address"
LOGIN = "contains a user's name or password"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", PATH),
        (" https://issuer.example/jwks", PATH),
        ("https://issuer.example/jwks ", PATH),
        ("https://issuer.example/jwks\n", PATH),
        ("https://issuer.example/jw\nks", PATH),
        ("https://issuer.example/jw ks", PATH),
        ("https://issuer.example/jw\tks", PATH),
        ("https://issuer.example/\x00", PATH),
        ("https://issüer.example/jwks", PATH),
        ("http://issuer.example/jwks", SCHEME),
        ("http://127.0.0.1.example/jwks", SCHEME),
        ("http://localhost.example/jwks", SCHEME),
        ("http://10.0.0.1/jwks", SCHEME),
        ("http://169.254.169.254/latest", SCHEME),
        ("http://[::2]/jwks", SCHEME),
        ("file://issuer.example/etc/passwd", SCHEME),
        ("ftp://127.0.0.1/jwks", SCHEME),
        ("//issuer.example/jwks", SCHEME),
        ("file:///etc/passwd", INVALID),
        ("https:///jwks", INVALID),
        ("https:issuer.example", INVALID),
        ("jwks", INVALID),
        ("https://issuer.example:port/jwks", INVALID),
        ("https://issuer.example:65536/jwks", INVALID),
        ("https://[::1/jwks", INVALID),
        ("https://issuer.example\\@other.example/", LOGIN),
        ("https://issuer.example\\other", INVALID),
        ("https://me@issuer.example/", LOGIN),
        ("https://me:pass-word@issuer.example/", LOGIN),
        ("https://@issuer.example/", LOGIN),
        ("https://issuer.example/jwks#keys", "contains a fragment"),
        ("https://issuer.example/jwks#", "contains a fragment"),
    ],
)
def test_invalid_addresses_are_rejected_without_being_quoted(url: str, reason: str) -> None:
    with pytest.raises(ConfigurationError) as rejection:
        PublicKeys(url)
    assert str(rejection.value) == f"GATECAST_TOKEN_JWKS_URL {reason}: expected https://{{host}}/{{path}}"


@pytest.mark.parametrize(
    "url",
    [
        "https://issuer.example",
        "https://issuer.example:8443/a/b.json?policy=p&x=%20",
        "HTTPS://Issuer.example/",
        "https://[2001:db8::1]/jwks",
        "http://127.0.0.1:4000/jwks",
        "http://[::1]:4000/jwks",
        "http://localhost:4000/jwks",
    ],
)
def test_https_addresses_and_those_of_this_machine_are_accepted(url: str) -> None:
    PublicKeys(url)


def test_keys_are_requested_as_gatecast(clock: Clock) -> None:
    endpoint = JwksEndpoint(rsa_jwk("rsa"))
    assert public_keys(endpoint, clock).candidates("rsa")
    assert endpoint.user_agents == {f"gatecast/{__version__}"}


def test_keys_are_found_by_their_id(clock: Clock) -> None:
    keys = public_keys(JwksEndpoint(rsa_jwk("rsa", alg="RS256"), ec_jwk("ec"), ec_jwk("rsa")), clock)
    assert [key.algorithms for key in keys.candidates("rsa")] == [("RS256",), ("ES256",)]
    assert [key.algorithms for key in keys.candidates("ec")] == [("ES256",)]
    assert [*keys.candidates("other"), *keys.candidates(""), *keys.candidates(None)] == []


RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")


@pytest.mark.parametrize(
    ("jwk", "algorithms"),
    [
        (rsa_jwk("key"), RSA),
        (rsa_jwk("key", alg=None), RSA),
        *((rsa_jwk("key", alg=alg), (alg,)) for alg in RSA),
        (ec_jwk("key"), ("ES256",)),
        (ec_jwk("key", alg="ES256"), ("ES256",)),
        (ec_jwk("key", ec.SECP384R1), ("ES384",)),
        (ec_jwk("key", ec.SECP521R1, alg="ES512"), ("ES512",)),
        (ed_jwk("key"), ("EdDSA",)),
        (ed_jwk("key", alg="EdDSA"), ("EdDSA",)),
    ],
)
def test_the_key_determines_the_algorithms(jwk: dict[str, Any], algorithms: tuple[str, ...], clock: Clock) -> None:
    (key,) = public_keys(JwksEndpoint(jwk), clock).candidates("key")
    assert key.algorithms == algorithms
    assert set(algorithms) <= set(PublicKeys.algorithms)


def test_no_public_key_verifies_with_hmac_or_without_a_signature() -> None:
    assert not [name for name in PublicKeys.algorithms if name.startswith("HS") or name.lower() == "none"]


def test_unusable_keys_are_ignored(clock: Clock) -> None:
    secret = jwt.algorithms.HMACAlgorithm.to_jwk(SECRET, as_dict=True)
    private = RSAAlgorithm.to_jwk(rsa_key("private"), as_dict=True)
    p384 = ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP384R1()).public_key(), as_dict=True)
    k256 = ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256K1()).public_key(), as_dict=True)
    ed448_key = OKPAlgorithm.to_jwk(ed448.Ed448PrivateKey.generate().public_key(), as_dict=True)
    short = RSAAlgorithm.to_jwk(rsa_key("short", 1_024).public_key(), as_dict=True)
    nameless = rsa_jwk("nameless")
    del nameless["kid"]
    unusable = [
        {**secret, "kid": "oct"},
        {**private, "kid": "private"},
        {**k256, "kid": "k256"},
        {**ed448_key, "kid": "ed448"},
        {**ed448_key, "kid": "ed448 with an alg", "alg": "EdDSA"},
        ed_jwk("ed25519 with a wrong alg", alg="ES256"),
        {**p384, "kid": "p384 with a wrong alg", "alg": "ES256"},
        {**short, "kid": "short"},
        rsa_jwk("enc", use="enc"),
        rsa_jwk("none", alg="none"),
        rsa_jwk("hs256", alg="HS256"),
        rsa_jwk("no alg", alg=""),
        rsa_jwk("oaep", alg="RSA-OAEP-256"),
        rsa_jwk("number") | {"kid": 7},
        rsa_jwk("empty") | {"kid": ""},
        nameless,
        {"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"},
        {"kid": "no type"},
        {},
    ]
    keys = public_keys(JwksEndpoint(*unusable, rsa_jwk("good")), clock)
    assert len(keys.candidates("good")) == 1
    for kid in (str(each.get("kid")) for each in unusable):
        assert keys.candidates(kid) == []


@pytest.mark.parametrize(
    "response",
    [
        (404, b""),
        (302, b""),
        (500, json.dumps({"keys": [rsa_jwk("another")]}).encode()),
        (200, b""),
        (200, b"<html>"),
        (200, b"[]"),
        (200, b"{}"),
        (200, b'{"keys": []}'),
        (200, b'{"keys": 7}'),
        (200, b'{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "a"}]}'),
        (200, b'{"keys": [{"kty": "RSA", "alg": []}]}'),
        (200, b"\xff\xfe"),
        (200, b"[" * 60_000),
        (200, b'{"keys": []}' + b" " * 65_536),
    ],
)
def test_invalid_jwks_response_keeps_cached_keys(response: tuple[int, bytes], clock: Clock, log: io.StringIO) -> None:
    endpoint = JwksEndpoint(rsa_jwk("rsa"))
    keys = public_keys(endpoint, clock)
    assert keys.candidates("rsa")
    endpoint.respond = lambda: response
    clock.now += 301
    assert keys.candidates("rsa")
    assert endpoint.requests == 2
    assert json.loads(log.getvalue())["message"] == "keys.not_fetched"


def test_revoked_keys_are_dropped(clock: Clock) -> None:
    endpoint = JwksEndpoint(rsa_jwk("old"), rsa_jwk("new"))
    keys = public_keys(endpoint, clock)
    assert keys.candidates("old")
    endpoint.serve(rsa_jwk("new"))
    clock.now += 301
    assert keys.candidates("old") == []


def hmac_keys(*secrets: str) -> tuple[Key, ...]:
    return tuple(Key(secret.encode(), ("HS256",)) for secret in secrets)


def shared_secret(manager: SecretsManager, clock: Clock) -> SharedSecret:
    return SharedSecret(manager, "arn:secret", clock)


def test_secret_that_was_never_rotated(clock: Clock) -> None:
    manager = SecretsManager(SECRET, rotated_at=clock.now)
    assert shared_secret(manager, clock).candidates(None) == hmac_keys(SECRET)


def test_previous_secret_is_valid_for_a_day(clock: Clock) -> None:
    secret = shared_secret(SecretsManager(SECRET, PREVIOUS_SECRET, rotated_at=clock.now), clock)
    assert secret.candidates("any") == hmac_keys(SECRET, PREVIOUS_SECRET)
    clock.now += DAY - 1
    assert len(secret.candidates("any")) == 2
    clock.now += 301
    assert secret.candidates("any") == hmac_keys(SECRET)


def test_a_secret_may_be_bytes(clock: Clock) -> None:
    assert shared_secret(SecretsManager(b"\xff" * 32), clock).candidates(None) == (Key(b"\xff" * 32, ("HS256",)),)


BAD_SECRETS = ["", "x" * 31, public_pem("rsa").decode(), json.dumps(rsa_jwk("rsa"))]


@pytest.mark.parametrize("bad", BAD_SECRETS)
def test_invalid_secret_is_rejected(bad: str, clock: Clock, log: io.StringIO) -> None:
    with pytest.raises(KeysUnavailable):
        shared_secret(SecretsManager(bad), clock).candidates(None)
    line = json.loads(log.getvalue())
    assert line["reason"].startswith("the secret is ")
    assert not bad or bad not in log.getvalue()


@pytest.mark.parametrize("bad", BAD_SECRETS)
def test_invalid_previous_secret_is_ignored(bad: str, clock: Clock) -> None:
    secret = shared_secret(SecretsManager(SECRET, bad, rotated_at=clock.now), clock)
    assert secret.candidates(None) == hmac_keys(SECRET)


@pytest.mark.usefixtures("log")
def test_secrets_manager_failure_keeps_the_cached_secret(clock: Clock) -> None:
    manager = SecretsManager(SECRET)
    secret = shared_secret(manager, clock)
    assert secret.candidates(None) == hmac_keys(SECRET)
    manager.failure = PermissionError()
    clock.now += 301
    assert secret.candidates(None) == hmac_keys(SECRET)
