"""The demo's settings from the environment: CLIENTS, ROOMS, MESSAGES and KEEP. Standard library only.

`python -m local.demo.settings` only checks them: exit code 0, or 2 with a line that says what is wrong.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

MAX_CLIENTS: Final = 10_000
MAX_ROOMS: Final = 1_000
MAX_MESSAGES: Final = 100_000
MIN_CLIENTS: Final = 10
"""The smallest number of which a tenth is a whole client."""


class ConfigurationError(ValueError):
    """A variable is missing or has an invalid value; the message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The demo's size, and whether everything keeps running afterwards (`keep`)."""

    clients: int
    rooms: int
    messages: int
    keep: bool

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Settings":
        """Raises ConfigurationError for the first invalid variable. An empty variable counts as unset."""
        settings = cls(
            clients=_number(environ, "CLIENTS", 1_000, MIN_CLIENTS, MAX_CLIENTS),
            rooms=_number(environ, "ROOMS", 20, 1, MAX_ROOMS),
            messages=_number(environ, "MESSAGES", 200, 1, MAX_MESSAGES),
            keep=bool(_number(environ, "KEEP", 0, 0, 1)),
        )
        if settings.rooms > settings.clients // 2:
            raise ConfigurationError(
                f"ROOMS={settings.rooms}: at most half of CLIENTS={settings.clients}, so that every room has members; "
                f"for example ROOMS={settings.clients // 2}"
            )
        return settings


def _number(environ: Mapping[str, str], name: str, default: int, minimum: int, maximum: int) -> int:
    text = environ.get(name) or str(default)
    number = int(text) if text.isascii() and text.isdigit() and len(text) < len(str(maximum)) + 2 else minimum - 1
    if not minimum <= number <= maximum:
        raise ConfigurationError(f"{name}={text}: must be a whole number from {minimum:,} to {maximum:,}")
    return number


def main() -> int:
    """Only checks the variables, before anything is installed."""
    try:
        Settings.from_environ(os.environ)
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
