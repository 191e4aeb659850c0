"""`python -m local.attach …`: the command line `gatecast …`, for the local stack if one is running.

Workers' addresses on the command line of `top`, or a queue in the environment, take precedence over the local stack.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

from local.discovery import RunningStack, find

_PROGRAM: Final = "gatecast.cli"
_WITH_VALUE: Final = frozenset({"--interval", "--svg", "--output"})
"""Options of `top`."""


def command(
    arguments: Sequence[str], environ: Mapping[str, str], running: RunningStack | None
) -> tuple[list[str], dict[str, str]]:
    """What follows `python -m`, and its environment."""
    workers = running.workers if running and _is_top_of_no_worker(arguments) else ()
    stack = running.environment if running and not environ.get("GATECAST_QUEUE_URL") else {}
    return [_PROGRAM, *arguments, *workers], {**environ, **stack}


def _is_top_of_no_worker(arguments: Sequence[str]) -> bool:
    return list(arguments[:1]) == ["top"] and all(
        each.startswith("-") or option in _WITH_VALUE for option, each in pairwise(arguments)
    )


if __name__ == "__main__":
    module, environment = command(sys.argv[1:], os.environ, find())
    os.execve(sys.executable, [sys.executable, "-m", *module], environment)  # noqa: S606 - our own commands
