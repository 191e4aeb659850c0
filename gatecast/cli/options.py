"""Options that several commands have, and the values that they take."""

import re
from typing import Annotated, Final

import typer

from gatecast.broadcast import MAX_NAME_LENGTH
from gatecast.cli.failures import WrongUsage
from gatecast.cli.output import Output

OutputOption = Annotated[Output, typer.Option("--output", help="lines for people, or JSON for programs")]
YesOption = Annotated[bool, typer.Option("--yes", help="do not ask for a confirmation")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="only show what would be done")]

_DURATION: Final = re.compile(r"([0-9]{1,9})([smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}
MAX_DURATION_SECONDS: Final = 365 * 24 * 3600
_NAME: Final = re.compile(rf"[!-~]{{1,{MAX_NAME_LENGTH}}}")


def check_name(option: str, text: str, *, or_else: str = "") -> None:
    """Raises WrongUsage unless the text is a name, as of a room; the remedy may offer something else."""
    if not _NAME.fullmatch(text):
        what = f"give a name of 1 to {MAX_NAME_LENGTH} characters from ! to ~, without spaces"
        raise WrongUsage(f"{option} is {text!r}", f"{what}{or_else}")


def seconds(option: str, text: str) -> int:
    """The seconds of a duration such as 90s, 15m, 1h or 7d; at most a year. Raises WrongUsage."""
    found = _DURATION.fullmatch(text)
    value = int(found[1]) * _SECONDS[found[2]] if found else None
    if value is None or value > MAX_DURATION_SECONDS:
        raise WrongUsage(f"{option} is {text!r}", "give a duration of up to a year, such as 90s, 15m, 1h or 7d")
    return value
