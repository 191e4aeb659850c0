"""The limit on open files: each post in flight is a socket, and a worker that runs out of them delivers nothing."""

import resource
from typing import Final

from worker.settings import ConfigurationError

RESERVED_FILES: Final = 320
"""For everything besides posts: SQS and DynamoDB (64 connections each), the admin server (64, and 64 that it has not
accepted yet), and 64 for credentials, name resolution, traces, the log and the event loop."""


def require_open_files(max_in_flight: int) -> None:
    """Raise the soft limit as far as this number of posts needs.

    Raises ConfigurationError if the hard limit or the system does not allow it.
    """
    needed = max_in_flight + RESERVED_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    except (ValueError, OSError):
        limit = soft if hard == resource.RLIM_INFINITY else hard
        raise ConfigurationError(
            f"GATECAST_MAX_IN_FLIGHT is {max_in_flight}, which needs {needed} open files, but the limit is {limit}: "
            f"expected a limit of {needed} or more (`ulimit -n`, or nofile in the container's `ulimits`), or at most "
            f"{max(0, limit - RESERVED_FILES)} posts in flight"
        ) from None
