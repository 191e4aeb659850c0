"""Tokens for the local stack: `python -m local.token USER [ROOM …]` prints one, for `make local AUTHORIZER=required`.

They are signed with a secret of this checkout, which is made when it is first needed and never printed. A grant is a
room's name, or `prefix/*`; the default is `lobby`.
"""

import argparse
import os
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import jwt

from local.backend import Backend

ISSUER: Final = "https://issuer.local/"
AUDIENCE: Final = "gatecast-local"
LIFETIME_SECONDS: Final = 12 * 3600
SECRET_FILE: Final = Path(__file__).parents[1] / ".local" / "token-secret"


def read_secret(path: Path = SECRET_FILE) -> str:
    """The secret, which only its owner may read. Creates it if it does not exist."""
    path.parent.mkdir(exist_ok=True)
    # written under another name and linked: a second process sees all of it, or makes the same attempt and loses
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(secrets.token_urlsafe(48))
    with suppress(FileExistsError):
        os.link(draft, path)
    draft.unlink()
    return path.read_text()


def sign(secret: str, user: str, rooms: Sequence[str], *, now: float) -> str:
    """A token with which `user` may join and publish to `rooms`, signed like those of the sample authorizer."""
    claims: dict[str, Any] = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": user,
        "iat": int(now),
        "exp": int(now) + LIFETIME_SECONDS,
        "gatecast": {"join": list(rooms), "publish": list(rooms)},
    }
    return jwt.encode(claims, secret, "HS256")


def issuer_settings(backend: Backend, secret: str) -> Mapping[str, str]:
    """The authorizer's variables for these tokens. Puts the secret into the backend's Secrets Manager."""
    with backend.client("secretsmanager") as manager:
        arn = manager.create_secret(Name="gatecast-tokens", SecretString=secret)["ARN"]
    return {
        "GATECAST_TOKEN_ISSUER": ISSUER,
        "GATECAST_TOKEN_AUDIENCE": AUDIENCE,
        "GATECAST_TOKEN_SECRET_ARN": arn,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m local.token", description=__doc__)
    parser.add_argument("user", help="the user: 1 to 94 characters from ! to ~")
    parser.add_argument("rooms", metavar="room", nargs="*", default=["lobby"], help="a grant (default lobby)")
    options = parser.parse_args()
    sys.stdout.write(f"{sign(read_secret(), options.user, options.rooms or ['lobby'], now=time.time())}\n")


if __name__ == "__main__":
    main()
