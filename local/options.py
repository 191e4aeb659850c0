"""The options of `python -m local`, checked before anything is installed or started. Standard library only.

`python -m local.options …` only checks them: exit code 0, or 2 with a line that says what is wrong.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

DEFAULT_PORT: Final = 4510
MAX_WORKERS: Final = 64
MAX_HISTORY_SECONDS: Final = 604_800
MAX_PRESENCE: Final = 1_000
"""As in `gatecast.room_settings`, which needs more than the standard library."""
REQUIRED: Final = "required"
_NONE: Final = "none"
_AUTHORIZERS: Final = {"": _NONE, _NONE: _NONE, "none, anyone may connect": _NONE, REQUIRED: REQUIRED}
"""The values of GATECAST_AUTHORIZER, and the short one of the option."""

_OWN: Final = (
    "GATECAST_QUEUE_URL",
    "GATECAST_DEAD_LETTER_QUEUE_URL",
    "GATECAST_RECEIPTS_QUEUE_URL",
    "GATECAST_TABLE",
    "GATECAST_CONNECTIONS_ENDPOINT",
    "GATECAST_HTTP_HOST",
    "GATECAST_HTTP_PORT",
    "GATECAST_TOKEN_SECRET_ARN",
)
"""Variables of routes and workers that the stack sets itself. All others take effect."""
_ISSUER: Final = ("GATECAST_TOKEN_ISSUER", "GATECAST_TOKEN_AUDIENCE", "GATECAST_TOKEN_JWKS_URL")


class Options(NamedTuple):
    """`authorizer`: whether clients need a token; `own_issuer`: whether it comes from the reader's own issuer.

    `room_settings` are the settings of all rooms that have none of their own, by attribute.
    """

    workers: int
    port: int
    fifo: bool
    authorizer: bool
    own_issuer: bool
    allowed_origins: tuple[str, ...]
    room_settings: Mapping[str, int]


def parse(arguments: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> Options:
    """Parses the command line. An invalid option, or a variable that would have no effect, exits with code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m local",
        description="The whole system on this machine, for manual use until Ctrl-C.",
        epilog="`make local` takes PORT, WORKERS, AUTHORIZER, HISTORY and PRESENCE. Variables of both take effect.",
    )
    parser.add_argument("--workers", type=_workers, default=1, help="number of workers, 0 to 64 (default 1)")
    parser.add_argument(
        "--port", type=_port, default=DEFAULT_PORT, help=f"the gateway's port (default {DEFAULT_PORT}; 0: a free one)"
    )
    parser.add_argument("--fifo", action="store_true", help="a FIFO queue instead of a standard one")
    parser.add_argument(
        "--authorizer",
        type=_authorizer,
        help="required: only clients with a token of `make token` may connect (default: $GATECAST_AUTHORIZER, or none)",
    )
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="an origin whose web pages may connect (default: all, as with API Gateway)",
    )
    add_room_options(parser)
    options = parser.parse_args(arguments)
    try:
        authorizer = options.authorizer or _authorizer(environ.get("GATECAST_AUTHORIZER", ""))
    except argparse.ArgumentTypeError as error:
        parser.error(f"GATECAST_AUTHORIZER: {error}")
    issuer = [name for name in _ISSUER if environ.get(name)]
    if ignored := [name for name in _OWN if environ.get(name)]:
        parser.error(f"the local stack sets these variables itself; remove yours with: unset {' '.join(ignored)}")
    if issuer and authorizer != REQUIRED:
        parser.error(f"{issuer[0]} has an effect only with --authorizer required (make local AUTHORIZER=required)")
    if issuer and len(issuer) < len(_ISSUER):
        parser.error(f"for tokens of your own issuer, set all of {', '.join(_ISSUER)}; for those of `make token`, none")
    return Options(
        workers=options.workers,
        port=options.port,
        fifo=options.fifo,
        authorizer=authorizer == REQUIRED,
        own_issuer=bool(issuer),
        allowed_origins=tuple(options.allow_origin),
        room_settings=room_settings(options),
    )


def add_room_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `room_settings`."""
    parser.add_argument(
        "--history-seconds",
        type=lambda text: _number(text, MAX_HISTORY_SECONDS),
        default=0,
        metavar="N",
        help=f"how long messages of all rooms can be read again, 0 to {MAX_HISTORY_SECONDS} (default 0: no history)",
    )
    parser.add_argument(
        "--presence",
        type=lambda text: _number(text, MAX_PRESENCE),
        default=0,
        metavar="N",
        help=f"up to how many members joins and departures are announced, 0 to {MAX_PRESENCE} (default 0: never)",
    )


def room_settings(options: argparse.Namespace) -> dict[str, int]:
    """The settings of all rooms that the options ask for; those that are 0 are left out."""
    asked = {"history_seconds": options.history_seconds, "presence": options.presence}
    return {name: value for name, value in asked.items() if value}


def _workers(text: str) -> int:
    return _number(text, MAX_WORKERS)


def _port(text: str) -> int:
    return _number(text, 65_535)


def _number(text: str, maximum: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(maximum)) and int(text) <= maximum):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {maximum}")
    return int(text)


def _authorizer(text: str) -> str:
    if text not in _AUTHORIZERS:
        raise argparse.ArgumentTypeError(f"{text!r} is neither {_NONE!r} nor {REQUIRED!r}")
    return _AUTHORIZERS[text]


if __name__ == "__main__":
    parse()
