"""Ten thousand corrupted tokens for each source of keys: every one is rejected, with 401 or 403."""

import json
import random
import string
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routes import authorizer
from routes.access import Access, AuthorizerContext, covers, is_grant
from routes.keys import PublicKeys, SharedSecret
from routes.tokens import Verifier
from tests.property.strategies import names
from tests.routes_events import LambdaContext, captured_log
from tests.tokens import (
    AUDIENCE,
    ISSUER,
    SECRET,
    JwksEndpoint,
    SecretsManager,
    claims,
    ec_jwk,
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

ROUNDS = 100
TOKENS_PER_ROUND = 100
BASE64URL = string.ascii_letters + string.digits + "-_"
PIECES: tuple[str, ...] = (*BASE64URL, *". =+/,\0\n é\ud800", "..", "none", "AAAA", "eyJhbGciOiJub25lIn0", "." * 9_000)
HEADERS: tuple[dict[str, Any], ...] = (
    {"alg": "none"},
    {"alg": "HS256"},
    {"alg": "HS256", "kid": "rsa"},
    {"alg": "RS256"},
    {"alg": "RS256", "kid": None},
    {"alg": "RS256", "kid": "rsa", "crit": ["x"], "x": 1},
    {"alg": "RS256", "kid": "rsa", "b64": False, "crit": ["b64"]},
    {"alg": "ES256", "kid": "rsa"},
    {"alg": "EdDSA", "kid": "rsa"},
    {"alg": "PS256", "kid": "ed"},
    {"alg": "HS256", "kid": "ed"},
    {"alg": ["RS256"], "kid": ["rsa"]},
    {"alg": {}, "kid": {}},
)


def corrupted(rng: random.Random, tokens: list[str]) -> str:
    """One of the tokens, changed in a few characters, a part, the header or the claims, or signed with another key."""
    token = rng.choice(tokens)
    parts = token.split(".")
    match rng.randrange(8):
        case 0:
            at = rng.randrange(len(token))
            return token[:at] + rng.choice(PIECES) + token[at + rng.randrange(3) :]
        case 1:
            at, end = sorted(rng.choices(range(len(token)), k=2))
            return token[:at] + token[end + 1 :]
        case 2:
            parts[rng.randrange(3)] = rng.choice(tokens).split(".")[rng.randrange(3)]
        case 3:
            parts[0] = encoded(json.dumps(rng.choice(HEADERS)).encode())
        case 4:
            changed = claims(**{rng.choice(["sub", "aud", "iss", "exp", "gatecast"]): rng.choice([0, "root", {}])})
            parts[1] = encoded(json.dumps(changed).encode())
        case 5:
            parts[rng.randrange(3)] = encoded(rng.randbytes(rng.randrange(300)))
        case 6:
            key: Any = rsa_key("another")
            return signed(claims(), key, "RS256", rng.choice(HEADERS) | {"alg": "RS256"})
        case _:
            key = rng.choice([b"x" * 32, public_pem("rsa")[27:60], rng.randbytes(32)])
            return signed(claims(), key, "HS256", rng.choice(HEADERS) | {"alg": "HS256"})
    return ".".join(parts)


def outcome(token: str, in_query: bool) -> str:
    """The policy's effect, or the text of the error."""
    headers = {} if in_query else {"Sec-WebSocket-Protocol": f"gatecast.v1, {token}"}
    query = {"token": token} if in_query else {}
    event = {"methodArn": "arn", "headers": headers, "queryStringParameters": query, "requestContext": {}}
    try:
        return str(authorizer.handler(event, LambdaContext())["policyDocument"]["Statement"][0]["Effect"])
    except Exception as error:  # noqa: BLE001 - API Gateway evaluates the error's text
        return str(error)


class _NoRevocations:
    def is_revoked(self, user: str, *, issued_at: float | None) -> bool:
        del user, issued_at
        return False


@pytest.mark.parametrize("source", ["public keys", "secret"])
def test_corrupted_tokens_are_rejected(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if source == "secret":
        keys: Any = SharedSecret(SecretsManager(SECRET), "arn:secret")
        good = [hs256(), hs256(sub="bob", gatecast={"join": ["a"]})]
    else:
        endpoint: Any = JwksEndpoint(rsa_jwk("rsa"), ec_jwk("ec"), ed_jwk("ed"))
        keys = PublicKeys("https://issuer.example/", endpoint)
        good = [
            rs256(),
            es256(),
            rs256(sub="bob", gatecast={"join": ["a"]}),
            signed(claims(), rsa_key("rsa"), "PS256", {"kid": "rsa"}),
            signed(claims(gatecast="gatecast/join:a"), ed_key("ed"), "EdDSA", {"kid": "ed"}),
        ]
    verifier = Verifier(keys, issuer=ISSUER, audience=AUDIENCE)
    monkeypatch.setattr(authorizer, "_verifier", lambda: verifier)
    monkeypatch.setattr(authorizer, "_revocations", _NoRevocations)
    # invalid but correctly signed tokens: combining their parts must not yield a valid one
    tokens = [*good, rs256(exp=1), rs256(aud="other"), es256(iss="other"), hs256(exp=1)]
    rejected = 0

    @settings(max_examples=ROUNDS, deadline=None, database=None)
    @given(st.integers(0, 2**64), st.booleans())
    def hold(seed: int, in_query: bool) -> None:
        nonlocal rejected
        rng = random.Random(seed)
        for _ in range(TOKENS_PER_ROUND):
            token = corrupted(rng, tokens)
            if token.strip() not in good:
                assert outcome(token, in_query) in {"Unauthorized", "Deny"}, token
                rejected += 1

    with captured_log() as log:
        assert [outcome(token, in_query=True) for token in good] == ["Allow"] * len(good)
        hold()
        assert outcome(good[0], in_query=False) == "Allow"
    assert rejected > ROUNDS * TOKENS_PER_ROUND * 0.9
    assert "authorizer.failed" not in log.getvalue()


grants = names().filter(is_grant) | st.from_regex(r"[a-c]{1,3}(/\*)?", fullmatch=True)


@given(st.lists(grants), st.lists(grants), st.integers(0, 2**40))
def test_routes_read_what_the_authorizer_wrote(join: list[str], publish: list[str], expires_at: int) -> None:
    access = Access(join=tuple(join), publish=tuple(publish), expires_at=expires_at)
    flat = AuthorizerContext.from_access("alice", access).flat()
    assert all(isinstance(value, str) and value for value in flat.values())
    read = AuthorizerContext(user=flat["user"], join=flat.get("join", ""), publish=flat.get("publish", ""))
    assert read.access() is None
    assert (
        AuthorizerContext(
            join=flat.get("join", ""), publish=flat.get("publish", ""), expires_at=flat["expiresAt"]
        ).access()
        == access
    )


@given(st.lists(names() | st.text(max_size=5)), names())
def test_no_grant_covers_a_system_room(grants: list[str], name: str) -> None:
    room = f"@{name}"[:100]
    assert not covers([*grants, room, room + "/*", "*", "@*", "@/*", "/*"], room)
    assert not any(map(is_grant, (room, f"{room}/*")))


@given(st.lists(grants), names())
def test_room_is_covered_by_its_name_or_a_prefix_before_a_slash(grants: list[str], room: str) -> None:
    prefixes = {f"{room[:at]}/*" for at, letter in enumerate(room[:-1]) if letter == "/"}
    expected = not room.startswith("@") and "*" not in room and bool(({room} | prefixes) & set(grants))
    assert covers(grants, room) == expected
