"""`python -m local.attach top` and `… redrive`: the commands of these names, for the local stack if one is running.

Workers' addresses on the command line, or a queue in the environment, take precedence over the local stack.
"""

import os
import sys
from collections.abc import Mapping, Sequence

from local.discovery import RunningStack, find


def command(
    arguments: Sequence[str], environ: Mapping[str, str], running: RunningStack | None
) -> tuple[list[str], dict[str, str]]:
    """What follows `python -m`, and its environment. An unknown command exits."""
    match arguments:
        case ["top"] if running:
            return ["gatecast.cli.top", *running.workers], dict(environ)
        case ["top", *others]:
            return ["gatecast.cli.top", *others], dict(environ)
        case ["redrive", *others] if running and not environ.get("GATECAST_QUEUE_URL"):
            return ["worker.redrive", *others], {**environ, **running.environment}
        case ["redrive", *others]:
            return ["worker.redrive", *others], dict(environ)
    sys.exit("python -m local.attach: expected top or redrive, and its arguments")


if __name__ == "__main__":
    module, environment = command(sys.argv[1:], os.environ, find())
    os.execve(sys.executable, [sys.executable, "-m", *module], environment)  # noqa: S606 - our own commands
