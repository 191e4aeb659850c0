"""Verification of valid and invalid tokens: one row per token."""

import hmac
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from gatecast.kicks import LEEWAY_SECONDS
from gatecast.table import CONNECTION_TTL_SECONDS
from routes.access import Access
from routes.keys import KeysUnavailable, PublicKeys, SharedSecret
from routes.tokens import STANDARD_NAMES, ClaimNames, InvalidToken, Verifier
from tests.tokens import (
    AUDIENCE,
    ISSUER,
    PREVIOUS_SECRET,
    SECRET,
    JwksEndpoint,
    SecretsManager,
    claims,
    ec_jwk,
    ec_key,
    ed_jwk,
    ed_key,
    encoded,
    es256,
    hs256,
    public_pem,
    rs256,
    rsa_jwk,
    rsa_key,
    signed,
)


class Granted(NamedTuple):
    user: str = "alice"
    join: tuple[str, ...] = ("lobby", "chat/*")
    publish: tuple[str, ...] = ("chat/*",)


NO_ROOMS = Granted(join=(), publish=())
NOT_A_TOKEN = (401, "not a token")
ALGORITHM = (401, "unsupported algorithm")
CRITICAL = (401, "unsupported critical extension")
SIGNATURE = (401, "not signed with a key of the issuer")
EXPIRED = (401, "exp is in the past")
ISSUED_BY = (401, "iss is not GATECAST_TOKEN_ISSUER")
MEANT_FOR = (401, "aud is not GATECAST_TOKEN_AUDIENCE")
DECODING = (401, "DecodeError")
INVALID = (401, "InvalidTokenError")
TYPES = (403, "gatecast has the wrong type")
USER = (403, "sub does not fit in a room's name")
GRANTS = (403, "gatecast has an invalid grant")
WORD = (403, "gatecast has a word that begins with gatecast/ and is no grant")


def missing(claim: str) -> tuple[int, str]:
    return (401, f"{claim} is missing")


def wrong_type(claim: str, status: int = 401) -> tuple[int, str]:
    return (status, f"{claim} has the wrong type")


DETACHED = b'{"alg":"RS256","kid":"rsa","b64":false,"crit":["b64"]}'

Expected = Granted | tuple[int, str]


def now() -> int:
    """Seconds since the epoch, read in each test, because a whole run takes longer than these tokens live."""
    return int(time.time())


def grants(*join: Any) -> str:
    return rs256(gatecast={"join": list(join)})


def with_header(header: dict[str, Any], key: Any = None, alg: str = "RS256") -> str:
    """Signed with the issuer's key, unless another is given, under this header."""
    return signed(claims(), key or rsa_key("rsa"), alg, {"kid": "rsa", **header})


def signed_payload(payload: bytes) -> str:
    return signed(payload, rsa_key("rsa"), "RS256", {"kid": "rsa"})


def with_raw_claims(text: str) -> str:
    """The valid claims with raw JSON before the closing brace: duplicate names, unusual numbers."""
    return signed_payload(json.dumps(claims()).removesuffix("}").encode() + f",{text}}}".encode())


def unsigned(alg: str, signature: str = "") -> str:
    header = json.dumps({"alg": alg, "kid": "rsa"})
    return f"{encoded(header.encode())}.{encoded(json.dumps(claims()).encode())}.{signature}"


def attackers(**header: Any) -> str:
    return with_header(header, key=rsa_key("attacker's own"))


def _signed_by_rsa(alg: str, kid: str) -> str:
    return signed(claims(), rsa_key(kid), alg, {"kid": kid})


def _signed_by_ec(alg: str, curve: type[ec.EllipticCurve]) -> str:
    return signed(claims(), ec_key(alg, curve), alg, {"kid": alg})


def _hmac_token(header: dict[str, Any], secret: bytes) -> str:
    """HMAC with any secret: PyJWT does not sign with some of them."""
    text = f"{encoded(json.dumps(header).encode())}.{encoded(json.dumps(claims()).encode())}"
    return f"{text}.{encoded(hmac.digest(secret, text.encode(), 'sha256'))}"


def _hmac_with_public_key(alg: str) -> str:
    return _hmac_token({"alg": alg, "kid": "rsa"}, public_pem("rsa"))


def parts(make: Callable[[list[str]], str]) -> str:
    return make(rs256().split("."))


JWKS: dict[str, tuple[Callable[[], str], Expected]] = {
    # valid
    "RS256": (rs256, Granted()),
    "ES256": (es256, Granted()),
    "several audiences": (lambda: rs256(aud=["other", AUDIENCE]), Granted()),
    "no gatecast claim": (lambda: rs256(gatecast=...), NO_ROOMS),
    "an empty gatecast claim": (lambda: rs256(gatecast={}), NO_ROOMS),
    "only to join": (lambda: rs256(gatecast={"join": ["lobby"]}), Granted(join=("lobby",), publish=())),
    "only to publish": (lambda: rs256(gatecast={"publish": ["a"]}), Granted(join=(), publish=("a",))),
    "a grant twice": (lambda: grants("a", "b", "a"), Granted(join=("a", "b"), publish=())),
    "unknown claims": (lambda: rs256(admin=True, gatecast={"ban": ["x"]}), NO_ROOMS),
    "without typ": (lambda: with_header({"typ": None}), Granted()),
    # time
    "expired": (lambda: rs256(exp=now() - 60), EXPIRED),
    "expired at the epoch": (lambda: rs256(exp=0), EXPIRED),
    "expired before the epoch": (lambda: rs256(exp=-1), EXPIRED),
    "expired within the leeway": (lambda: rs256(exp=now() - 2), Granted()),
    "not yet valid": (lambda: rs256(nbf=now() + 600), (401, "nbf is in the future")),
    "not valid for a moment": (lambda: rs256(nbf=now() + 5), Granted()),
    "issued in the future": (lambda: rs256(iat=now() + 600), (401, "iat is in the future")),
    "exp missing": (lambda: rs256(exp=...), missing("exp")),
    "exp null": (lambda: rs256(exp=None), missing("exp")),
    "exp true": (lambda: rs256(exp=True), EXPIRED),
    "exp a list": (lambda: rs256(exp=[now() + 600]), wrong_type("exp")),
    "exp a word": (lambda: rs256(exp="tomorrow"), wrong_type("exp")),
    "exp a number in quotes": (lambda: rs256(exp=str(now() + 600)), wrong_type("exp", 403)),
    "exp infinite": (lambda: with_raw_claims('"exp":1e999'), wrong_type("exp")),
    "exp not a number": (lambda: with_raw_claims('"exp":NaN'), wrong_type("exp")),
    "exp a fraction": (lambda: rs256(exp=now() + 600.5), Granted()),
    "exp very far": (lambda: rs256(exp=10**30), Granted()),
    "exp of 5,000 digits": (lambda: with_raw_claims('"exp":' + "9" * 5_000), DECODING),
    "nbf null": (lambda: rs256(nbf=None), wrong_type("nbf")),
    "iat a word": (lambda: rs256(iat="today"), wrong_type("iat")),
    "jti a number": (lambda: rs256(jti=7), wrong_type("jti")),
    # issuer and audience
    "another issuer": (lambda: rs256(iss="https://evil.example/"), ISSUED_BY),
    "nearly the issuer": (lambda: rs256(iss=ISSUER.rstrip("/")), ISSUED_BY),
    "iss missing": (lambda: rs256(iss=...), missing("iss")),
    "iss a list with it": (lambda: rs256(iss=[ISSUER]), ISSUED_BY),
    "another audience": (lambda: rs256(aud="other"), MEANT_FOR),
    "nearly the audience": (lambda: rs256(aud=AUDIENCE + "2"), MEANT_FOR),
    "aud missing": (lambda: rs256(aud=...), missing("aud")),
    "aud empty": (lambda: rs256(aud=[]), MEANT_FOR),
    "aud an object": (lambda: rs256(aud={AUDIENCE: 1}), MEANT_FOR),
    "aud with a number in it": (lambda: rs256(aud=[AUDIENCE, 7]), MEANT_FOR),
    # user
    "sub missing": (lambda: rs256(sub=...), missing("sub")),
    "sub null": (lambda: rs256(sub=None), missing("sub")),
    "sub a number": (lambda: rs256(sub=7), wrong_type("sub", 403)),
    "sub empty": (lambda: rs256(sub=""), USER),
    "sub with a space": (lambda: rs256(sub="alice smith"), USER),
    "sub not ASCII": (lambda: rs256(sub="zoë"), USER),
    "sub with a null": (lambda: rs256(sub="alice\0"), USER),
    "sub with a line break": (lambda: rs256(sub="alice\n"), USER),
    "sub with half a surrogate pair": (lambda: rs256(sub="\ud800"), USER),
    "sub as long as it may be": (lambda: rs256(sub="u" * 94), Granted(user="u" * 94)),
    "sub longer": (lambda: rs256(sub="u" * 95), USER),
    "sub of many characters": (lambda: rs256(sub="auth0|a+b#/0@x"), Granted(user="auth0|a+b#/0@x")),
    "sub twice": (lambda: with_raw_claims('"sub":"bob"'), Granted(user="bob")),
    "exp twice": (lambda: with_raw_claims('"exp":1'), EXPIRED),
    # grants
    "claim a list of other services' words": (lambda: rs256(gatecast=["lobby", "join:a"]), NO_ROOMS),
    "claim a list with a number": (lambda: rs256(gatecast=["gatecast/join:a", 7]), TYPES),
    "claim a number": (lambda: rs256(gatecast=7), TYPES),
    "claim null": (lambda: rs256(gatecast=None), TYPES),
    "claim a text of other services' words": (lambda: rs256(gatecast="lobby join:a"), NO_ROOMS),
    "claim an empty text": (lambda: rs256(gatecast=""), NO_ROOMS),
    "words in a text": (
        lambda: rs256(gatecast="openid gatecast/join:a gatecast/join:b/* gatecast/publish:c:d gatecast/join:a"),
        Granted(join=("a", "b/*"), publish=("c:d",)),
    ),
    "words in a list": (
        lambda: rs256(gatecast=["read:all", "gatecast/publish:a/join:b"]),
        Granted(join=(), publish=("a/join:b",)),
    ),
    "a word of another service with ours in it": (lambda: rs256(gatecast="other/gatecast/join:a"), NO_ROOMS),
    "a word in capital letters": (lambda: rs256(gatecast="Gatecast/join:a"), NO_ROOMS),
    "a word for a system room": (lambda: rs256(gatecast="gatecast/join:@all"), GRANTS),
    "a word with a star": (lambda: rs256(gatecast="gatecast/join:*"), GRANTS),
    "a word without a grant": (lambda: rs256(gatecast="gatecast/join:"), GRANTS),
    "a word without a colon": (lambda: rs256(gatecast="gatecast/join"), WORD),
    "a word with another action": (lambda: rs256(gatecast="gatecast/leave:a"), WORD),
    "a word of the prefix alone": (lambda: rs256(gatecast="gatecast/"), WORD),
    "two words in one of a list": (lambda: rs256(gatecast=["gatecast/join:a gatecast/join:b"]), GRANTS),
    "join a string": (lambda: rs256(gatecast={"join": "lobby"}), TYPES),
    "join null": (lambda: rs256(gatecast={"join": None}), TYPES),
    "join an object": (lambda: rs256(gatecast={"join": {"lobby": True}}), TYPES),
    "join with a number": (lambda: grants("lobby", 7), TYPES),
    "publish a string": (lambda: rs256(gatecast={"publish": "lobby"}), TYPES),
    "a prefix": (lambda: grants("a/*", "a/b/*"), Granted(join=("a/*", "a/b/*"), publish=())),
    "a star alone": (lambda: grants("*"), GRANTS),
    "a star after a name": (lambda: grants("a*"), GRANTS),
    "a star in front": (lambda: grants("*/a"), GRANTS),
    "a star in the middle": (lambda: grants("a/*/b"), GRANTS),
    "a star after a slash alone": (lambda: grants("/*"), GRANTS),
    "a system room": (lambda: grants("@all"), GRANTS),
    "another user's room": (lambda: grants("lobby", "@user/bob"), GRANTS),
    "all system rooms": (lambda: grants("@user/*"), GRANTS),
    "to publish to everyone": (lambda: rs256(gatecast={"publish": ["@all"]}), GRANTS),
    "two rooms in one grant": (lambda: grants("lobby @all"), GRANTS),
    "no room": (lambda: grants(""), GRANTS),
    "a room not ASCII": (lambda: grants("zoë"), GRANTS),
    "a room with a null": (lambda: grants("a\0b"), GRANTS),
    "a room too long": (lambda: grants("r" * 101), GRANTS),
    # algorithms
    "none without a signature": (lambda: unsigned("none"), NOT_A_TOKEN),
    "none with one": (lambda: unsigned("none", "AAAA"), ALGORITHM),
    "nOnE": (lambda: unsigned("nOnE", "AAAA"), ALGORITHM),
    "no alg": (lambda: signed(claims(), rsa_key("rsa"), "RS256", b'{"kid":"rsa"}'), ALGORITHM),
    "alg a list": (lambda: signed(claims(), rsa_key("rsa"), "RS256", b'{"kid":"rsa","alg":["RS256"]}'), ALGORITHM),
    "alg in small letters": (lambda: with_header({"alg": "rs256"}), ALGORITHM),
    "HS256 with the public key as its secret": (
        lambda: _hmac_token({"alg": "HS256", "kid": "rsa"}, public_pem("rsa")),
        ALGORITHM,
    ),
    "HS256 with the secret that is in the JWKS": (
        lambda: signed(claims(), SECRET.encode(), "HS256", {"kid": "oct"}),
        ALGORITHM,
    ),
    "RS256 in the header, an HMAC as signature": (
        lambda: _hmac_token({"alg": "RS256", "kid": "rsa"}, public_pem("rsa")),
        SIGNATURE,
    ),
    **{
        f"{alg} with a key for all": (partial(with_header, {}, alg=alg), Granted())
        for alg in ("RS384", "RS512", "PS256", "PS384", "PS512")
    },
    "RS512 with a key for RS256": (lambda: _signed_by_rsa("RS512", "RS256 only"), SIGNATURE),
    "PS256 with a key for RS256": (lambda: _signed_by_rsa("PS256", "RS256 only"), SIGNATURE),
    "RS256 with a key for RS256": (lambda: _signed_by_rsa("RS256", "RS256 only"), Granted()),
    "RS256 with a key for PS512": (lambda: _signed_by_rsa("RS256", "PS512 only"), SIGNATURE),
    "PS512 with a key for PS512": (lambda: _signed_by_rsa("PS512", "PS512 only"), Granted()),
    "ES384": (lambda: _signed_by_ec("ES384", ec.SECP384R1), Granted()),
    "ES512": (lambda: _signed_by_ec("ES512", ec.SECP521R1), Granted()),
    "EdDSA": (lambda: signed(claims(), ed_key("ed"), "EdDSA", {"kid": "ed"}), Granted()),
    "EdDSA with another key": (lambda: signed(claims(), ed_key("another"), "EdDSA", {"kid": "ed"}), SIGNATURE),
    "EdDSA with the kid of an RSA key": (lambda: signed(claims(), ed_key("ed"), "EdDSA", {"kid": "rsa"}), SIGNATURE),
    "an EdDSA signature under ES256": (
        lambda: signed(claims(), ed_key("ed"), "EdDSA", {"kid": "ed", "alg": "ES256"}),
        SIGNATURE,
    ),
    "an ES256 signature under ES384": (
        lambda: signed(claims(), ec_key("ec"), "ES256", {"kid": "ec", "alg": "ES384"}),
        SIGNATURE,
    ),
    "ES256K": (lambda: with_header({"alg": "ES256K"}), ALGORITHM),
    **{
        f"{alg} in the header, an HMAC with the public key as signature": (
            partial(_hmac_with_public_key, alg),
            SIGNATURE,
        )
        for alg in ("RS512", "PS256", "ES384", "EdDSA")
    },
    **{
        f"{alg} with the public key as its secret": (
            partial(_hmac_with_public_key, alg),
            ALGORITHM,
        )
        for alg in ("HS384", "HS512")
    },
    # keys
    "no kid": (lambda: signed(claims(), rsa_key("rsa"), "RS256"), SIGNATURE),
    "kid empty": (lambda: with_header({"kid": ""}), SIGNATURE),
    "kid a number": (lambda: with_header({"kid": 7}), INVALID),
    "kid a path": (lambda: with_header({"kid": "../../dev/null"}), SIGNATURE),
    "kid unknown": (lambda: rs256("unknown"), SIGNATURE),
    "kid of a key for another algorithm": (lambda: with_header({"kid": "ec"}), SIGNATURE),
    "kid of a key for encryption": (lambda: rs256("enc"), SIGNATURE),
    "an attacker's key under our kid": (attackers, SIGNATURE),
    "an attacker's key in jwk": (lambda: attackers(jwk=rsa_jwk("attacker's own")), SIGNATURE),
    "an attacker's keys at jku": (lambda: attackers(jku="https://evil.example/jwks.json"), SIGNATURE),
    "an attacker's certificate at x5u": (lambda: attackers(x5u="https://evil.example/x5u"), SIGNATURE),
    "an attacker's certificate in x5c": (lambda: attackers(x5c=["AAAA"]), SIGNATURE),
    "the right key, and a jku that is ignored": (lambda: with_header({"jku": "https://evil.example/"}), Granted()),
    "another EC key": (lambda: signed(claims(), ec_key("another"), "ES256", {"kid": "ec"}), SIGNATURE),
    "an EC signature of zeros": (
        lambda: ".".join([*es256().split(".")[:2], encoded(bytes(64))]),
        SIGNATURE,
    ),
    # critical extensions
    "crit with an unknown extension": (lambda: with_header({"crit": ["exp"], "exp": 1}), INVALID),
    "crit empty": (lambda: with_header({"crit": []}), INVALID),
    "crit b64": (lambda: with_header({"crit": ["b64"], "b64": True}), CRITICAL),
    "payload left out by b64": (
        lambda: parts(lambda part: f"{encoded(DETACHED)}.AAAA.{part[2]}"),
        DECODING,
    ),
    # form
    "empty": (lambda: "", NOT_A_TOKEN),
    "two parts": (lambda: parts(lambda part: ".".join(part[:2])), NOT_A_TOKEN),
    "four parts": (lambda: rs256() + ".AAAA", NOT_A_TOKEN),
    "encrypted": (lambda: "a.b.c.d.e", NOT_A_TOKEN),
    "padded": (lambda: rs256() + "==", NOT_A_TOKEN),
    "a space behind it": (lambda: rs256() + " ", NOT_A_TOKEN),
    "a line break behind it": (lambda: rs256() + "\n", NOT_A_TOKEN),
    "a null in it": (lambda: rs256().replace(".", ".\0", 1), NOT_A_TOKEN),
    "not ASCII": (lambda: rs256() + "é", NOT_A_TOKEN),
    "digits of another script": (lambda: rs256() + "٣", NOT_A_TOKEN),
    "half a surrogate pair": (lambda: rs256() + "\ud800", NOT_A_TOKEN),
    "a word in front": (lambda: "Bearer " + rs256(), NOT_A_TOKEN),
    "very large": (lambda: rs256(blob="x" * 8_192), NOT_A_TOKEN),
    "a megabyte of dots": (lambda: "." * 1_000_000, NOT_A_TOKEN),
    "large, and within the limit": (lambda: rs256(blob="x" * 5_000), Granted()),
    "three letters": (lambda: "a.b.c", DECODING),
    "another payload": (
        lambda: parts(lambda part: f"{part[0]}.{encoded(json.dumps(claims(sub='root')).encode())}.{part[2]}"),
        SIGNATURE,
    ),
    "bits that base64 leaves unused": (
        lambda: parts(lambda part: f"{part[0]}.{part[1]}.{_other_bits(part[2])}"),
        DECODING,
    ),
    "header no JSON": (lambda: signed(claims(), rsa_key("rsa"), "RS256", b"{"), DECODING),
    "header a list": (lambda: signed(claims(), rsa_key("rsa"), "RS256", b"[]"), DECODING),
    "header deeper than the stack": (lambda: signed(claims(), rsa_key("rsa"), "RS256", b"[" * 5_000), DECODING),
    "payload no JSON": (lambda: signed_payload(b"{"), DECODING),
    "payload a list": (lambda: signed_payload(b"[]"), DECODING),
    "payload empty": (lambda: signed_payload(b""), NOT_A_TOKEN),
    "payload no UTF-8": (lambda: signed_payload(b"\xff"), DECODING),
    "payload deeper than the stack": (lambda: signed_payload(b'{"a":' * 1_000), DECODING),
}

SHARED: dict[str, tuple[Callable[[], str], Expected]] = {
    "HS256": (hs256, Granted()),
    "HS256 with the previous secret": (lambda: hs256(PREVIOUS_SECRET), Granted()),
    "HS256 with another secret": (lambda: hs256("x" * 32), SIGNATURE),
    "HS256 with no secret": (lambda: _hmac_token({"alg": "HS256"}, b""), SIGNATURE),
    "HS256 that names a key": (lambda: signed(claims(), SECRET.encode(), "HS256", {"kid": "any"}), Granted()),
    "HS256, expired": (lambda: hs256(exp=now() - 60), EXPIRED),
    "HS512 with the secret": (lambda: signed(claims(), (SECRET * 2).encode(), "HS512"), ALGORITHM),
    "none": (lambda: unsigned("none", "AAAA"), ALGORITHM),
    "RS256": (rs256, ALGORITHM),
    "ES256": (es256, ALGORITHM),
    "EdDSA": (lambda: signed(claims(), ed_key("ed"), "EdDSA", {"kid": "ed"}), ALGORITHM),
    "a system room": (lambda: hs256(gatecast={"join": ["@all"]}), GRANTS),
}


def _other_bits(signature: str) -> str:
    """The same bytes in another encoding: 256 bytes leave four bits of the last character unused."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return signature[:-1] + alphabet[alphabet.index(signature[-1]) ^ 1]


def from_jwks(audience: str = AUDIENCE, names: ClaimNames = STANDARD_NAMES) -> Verifier:
    oct_key = {"kty": "oct", "kid": "oct", "k": encoded(SECRET.encode())}
    endpoint = JwksEndpoint(
        rsa_jwk("rsa"),
        rsa_jwk("RS256 only", alg="RS256"),
        rsa_jwk("PS512 only", alg="PS512"),
        rsa_jwk("enc", use="enc"),
        ec_jwk("ec"),
        ec_jwk("ES384", ec.SECP384R1),
        ec_jwk("ES512", ec.SECP521R1),
        ed_jwk("ed"),
        oct_key,
    )
    keys = PublicKeys("https://issuer.example/jwks.json", endpoint)  # type: ignore[arg-type]  # a stand-in
    return Verifier(keys, issuer=ISSUER, audience=audience, names=names)


def from_secret() -> Verifier:
    manager = SecretsManager(SECRET, PREVIOUS_SECRET, rotated_at=time.time())
    return Verifier(SharedSecret(manager, "arn:secret"), issuer=ISSUER, audience=AUDIENCE)


def outcome(verifier: Verifier, token: str) -> Expected:
    try:
        user, access, _ = verifier.verify(token)
    except InvalidToken as rejection:
        return int(rejection.status), rejection.reason
    return Granted(user, access.join, access.publish)


@pytest.mark.parametrize(("make", "expected"), JWKS.values(), ids=JWKS.keys())
def test_tokens_signed_with_public_keys(make: Callable[[], str], expected: Expected) -> None:
    assert outcome(from_jwks(), make()) == expected


@pytest.mark.parametrize(("make", "expected"), SHARED.values(), ids=SHARED.keys())
def test_tokens_signed_with_a_secret(make: Callable[[], str], expected: Expected) -> None:
    assert outcome(from_secret(), make()) == expected


OTHER_NAMES = ClaimNames(audience="client_id", user="username", grants="https://example.com/rooms")


def renamed(**changed: Any) -> str:
    """A token whose claims have the names of OTHER_NAMES, some of them changed or, with `...`, omitted."""
    named = {"client_id": "app", "username": "bob", "https://example.com/rooms": {"join": ["a"]}}
    return rs256(**{"aud": ..., "sub": 7, "gatecast": {"join": ["not used"]}, **named, **changed})


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (renamed, Granted("bob", ("a",), ())),
        (lambda: renamed(client_id=["x", "app"]), Granted("bob", ("a",), ())),
        (lambda: renamed(aud="another"), Granted("bob", ("a",), ())),
        (lambda: renamed(client_id=..., aud="app"), missing("client_id")),
        (lambda: renamed(client_id="another", aud="app"), (401, "client_id is not GATECAST_TOKEN_AUDIENCE")),
        (lambda: renamed(client_id={"app": 1}), (401, "client_id is not GATECAST_TOKEN_AUDIENCE")),
        (lambda: renamed(username=...), missing("username")),
        (lambda: renamed(username=7), wrong_type("username", 403)),
        (lambda: renamed(username="bob smith"), (403, "username does not fit in a room's name")),
        (lambda: renamed(**{OTHER_NAMES.grants: ...}), Granted("bob", (), ())),
        (lambda: renamed(**{OTHER_NAMES.grants: 7}), wrong_type(OTHER_NAMES.grants, 403)),
        (lambda: renamed(**{OTHER_NAMES.grants: {"join": ["*"]}}), (403, f"{OTHER_NAMES.grants} has an invalid grant")),
    ],
)
def test_claims_may_have_other_names(token: Callable[[], str], expected: Expected) -> None:
    assert outcome(from_jwks("app", OTHER_NAMES), token()) == expected


@pytest.mark.parametrize(
    ("aud", "accepted"),
    [("web", True), ("ios", True), (["x", "ios"], True), ("web ios", False), ("", False), ("we", False), ([""], False)],
)
def test_one_of_several_audiences_is_enough(aud: Any, accepted: bool) -> None:
    assert outcome(from_jwks("web ios"), rs256(aud=aud)) == (Granted() if accepted else MEANT_FOR)


def test_reasons_quote_no_value_of_a_token() -> None:
    reasons = [outcome(from_jwks(), make()) for make, _ in JWKS.values()]
    text = " ".join(reason[1] for reason in reasons if not isinstance(reason, Granted))
    for value in ("evil", "smith", "tomorrow", "bob", "lobby", "other"):
        assert value not in text


@pytest.mark.parametrize(
    ("exp", "expires_at"),
    [
        (1_700_000_600, 1_700_000_600 + LEEWAY_SECONDS),
        (1_700_000_600.9, 1_700_000_600 + LEEWAY_SECONDS),
        (1_700_000_000 + CONNECTION_TTL_SECONDS, 1_700_000_000 + CONNECTION_TTL_SECONDS),
        (10**30, 1_700_000_000 + CONNECTION_TTL_SECONDS),
    ],
)
def test_access_ends_with_the_token_or_the_maximum_connection_lifetime(exp: float, expires_at: int) -> None:
    verifier = from_jwks()
    verifier._clock = lambda: 1_700_000_000.5
    assert verifier._identity({"sub": "alice", "exp": exp}).access == Access(join=(), publish=(), expires_at=expires_at)


def test_new_key_is_fetched_once_and_unknown_keys_do_not_cause_fetches() -> None:
    now = time.time()
    endpoint = JwksEndpoint(rsa_jwk("rsa"))
    keys = PublicKeys("https://issuer.example/jwks.json", endpoint, lambda: now)  # type: ignore[arg-type]  # as above
    verifier = Verifier(keys, issuer=ISSUER, audience=AUDIENCE)
    assert outcome(verifier, rs256()) == Granted()
    endpoint.serve(rsa_jwk("rsa"), rsa_jwk("rotated"))
    for _ in range(100):
        assert outcome(verifier, rs256("rotated")) == SIGNATURE
    assert endpoint.requests == 1
    now += 30
    assert outcome(verifier, rs256("rotated")) == Granted()
    for number in range(100):
        assert outcome(verifier, with_header({"kid": f"made up {number}"})) == SIGNATURE
    assert endpoint.requests == 2


def test_while_the_jwks_address_is_down_only_cached_keys_are_valid() -> None:
    now = time.time()
    endpoint = JwksEndpoint(rsa_jwk("rsa"))
    keys = PublicKeys("https://issuer.example/jwks.json", endpoint, lambda: now)  # type: ignore[arg-type]  # as above
    verifier = Verifier(keys, issuer=ISSUER, audience=AUDIENCE)
    assert outcome(verifier, rs256()) == Granted()
    endpoint.fail_requests()
    now += 600
    assert outcome(verifier, rs256()) == Granted()
    assert outcome(verifier, rs256("rotated")) == SIGNATURE
    now += 24 * 3600
    with pytest.raises(KeysUnavailable):
        verifier.verify(rs256())


def test_rotated_secret_is_fetched_when_the_cached_one_does_not_match() -> None:
    now = time.time()
    manager = SecretsManager(PREVIOUS_SECRET, rotated_at=now - 10**6)
    verifier = Verifier(SharedSecret(manager, "arn:secret", lambda: now), issuer=ISSUER, audience=AUDIENCE)
    assert outcome(verifier, hs256(PREVIOUS_SECRET)) == Granted()
    manager.versions = {"AWSCURRENT": SECRET, "AWSPREVIOUS": PREVIOUS_SECRET}
    manager.rotated_at = now
    requests_before = manager.requests
    assert outcome(verifier, hs256()) == SIGNATURE
    assert manager.requests == requests_before
    now += 30
    assert outcome(verifier, hs256()) == Granted()
    assert outcome(verifier, hs256(PREVIOUS_SECRET)) == Granted()
    now += 24 * 3600
    assert outcome(verifier, hs256()) == Granted()
    assert outcome(verifier, hs256(PREVIOUS_SECRET)) == SIGNATURE


@pytest.mark.parametrize(
    ("iat", "expected"), [(1_700_000_000, 1_700_000_000), (1_700_000_000.75, 1_700_000_000), (..., None)]
)
def test_the_time_of_issue_is_known_if_the_token_has_it(iat: Any, expected: int | None) -> None:
    assert from_jwks().verify(rs256(iat=iat)).issued_at == expected
