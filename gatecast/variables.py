"""The names of all environment variables of Gatecast, by which misspelt ones are found."""

import difflib
from collections.abc import Mapping
from typing import Final

_PREFIX: Final = "GATECAST_"
WORKER: Final = frozenset({
    "GATECAST_QUEUE_URL", "GATECAST_DEAD_LETTER_QUEUE_URL", "GATECAST_RECEIPTS_QUEUE_URL", "GATECAST_TABLE",
    "GATECAST_MEMBERS", "GATECAST_PAYLOAD_BUCKET", "GATECAST_CONNECTIONS_ENDPOINT", "GATECAST_HTTP_HOST",
    "GATECAST_HTTP_PORT", "GATECAST_MAX_IN_FLIGHT", "GATECAST_MAX_POSTS_PER_SECOND", "GATECAST_MAX_BROADCASTS",
    "GATECAST_VISIBILITY_SECONDS", "GATECAST_SLOW_CLIENTS", "GATECAST_DRAIN_SECONDS", "GATECAST_LOG_LEVEL",
    "GATECAST_LOG_FORMAT",
})  # fmt: skip
"""Those of the worker's `Settings`."""
OTHERS: Final = frozenset({
    "GATECAST_AUTHORIZER", "GATECAST_JOINS_PER_SECOND", "GATECAST_PUBLISHES_PER_SECOND",
    "GATECAST_ROOMS_PER_CONNECTION", "GATECAST_TOKEN_ISSUER",
    "GATECAST_TOKEN_AUDIENCE", "GATECAST_TOKEN_AUDIENCE_CLAIM", "GATECAST_TOKEN_USER_CLAIM",
    "GATECAST_TOKEN_GRANTS_CLAIM", "GATECAST_TOKEN_JWKS_URL", "GATECAST_TOKEN_SECRET_ARN", "GATECAST_MINISTACK",
    "GATECAST_LOCAL_SECRET", "GATECAST_IMAGES", "GATECAST_CHAOS", "GATECAST_CHAOS_SEED", "GATECAST_CHAOS_RESULTS",
    "GATECAST_FAULTS_RESULTS", "GATECAST_SOAK_SECONDS", "GATECAST_EXAMPLES", "GATECAST_HTTP_API",
    "GATECAST_TOKEN",
})  # fmt: skip
"""Those that the routes, the command line, the local stack and the tests read. A worker's environment may have them."""


def unknown_variables(environ: Mapping[str, str]) -> dict[str, str | None]:
    """Variables that look like Gatecast's and are read by no part of it, each with the nearest name of the worker's."""
    names = {name.removeprefix(_PREFIX): name for name in sorted(WORKER)}
    found: dict[str, str | None] = {}
    for name in sorted(environ):
        if name.upper().startswith("GATECAST") and name not in WORKER | OTHERS:
            near = difflib.get_close_matches(name.upper().removeprefix(_PREFIX), names, n=1, cutoff=0.55)
            found[name] = names[near[0]] if near else None
    return found
