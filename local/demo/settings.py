"""What the demo is told by the environment: CLIENTS, ROOMS, MESSAGES and KEEP."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

MAX_CLIENTS: Final = 10_000
MAX_ROOMS: Final = 1_000
MAX_MESSAGES: Final = 100_000
MIN_CLIENTS: Final = 10
"""Of fewer, no tenth can vanish."""


class InvalidSetting(ValueError):  # noqa: N818 - it says what the input is
    """A variable is missing or has a value that the demo cannot work with; the message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How large the demo is, and whether all of it stays when it is over."""

    clients: int
    rooms: int
    messages: int
    keep: bool

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Settings":
        """Raises InvalidSetting for the first variable that is wrong. An empty one counts as absent."""
        settings = cls(
            clients=_number(environ, "CLIENTS", 1_000, MIN_CLIENTS, MAX_CLIENTS),
            rooms=_number(environ, "ROOMS", 20, 1, MAX_ROOMS),
            messages=_number(environ, "MESSAGES", 200, 1, MAX_MESSAGES),
            keep=bool(_number(environ, "KEEP", 0, 0, 1)),
        )
        if settings.rooms > settings.clients // 2:
            raise InvalidSetting(
                f"ROOMS={settings.rooms}: at most half of CLIENTS={settings.clients}, so that somebody is in each"
            )
        return settings


def _number(environ: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    text = environ.get(name) or str(default)
    number = int(text) if text.isascii() and text.isdigit() and len(text) < len(str(most)) + 2 else least - 1
    if not least <= number <= most:
        raise InvalidSetting(f"{name}={text}: must be a whole number from {least:,} to {most:,}")
    return number
