import stat
import time
from pathlib import Path

import jwt

from local.token import AUDIENCE, ISSUER, read_secret, sign
from routes.keys import MIN_SECRET_BYTES


def test_the_secret_is_made_once_and_is_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "made" / "token-secret"
    secret = read_secret(path)
    assert read_secret(path) == secret
    assert read_secret(tmp_path / "another") != secret
    assert len(secret.encode()) >= MIN_SECRET_BYTES
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["token-secret"]


def test_a_token_grants_its_rooms(tmp_path: Path) -> None:
    secret = read_secret(tmp_path / "secret")
    token = sign(secret, "alice", ["lobby", "chat/*"], now=time.time())
    claims = jwt.decode(token, secret, ["HS256"], audience=AUDIENCE, issuer=ISSUER)
    assert claims["sub"] == "alice"
    assert claims["gatecast"] == {"join": ["lobby", "chat/*"], "publish": ["lobby", "chat/*"]}
