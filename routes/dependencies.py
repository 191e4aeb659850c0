"""The handlers' dependencies: created from the environment at first use, kept for the life of the process.

GATECAST_TABLE and GATECAST_QUEUE_URL name the table and the queue, GATECAST_JOINS_PER_SECOND and
GATECAST_PUBLISHES_PER_SECOND limit clients; the AWS SDK's own variables are honoured.
"""

import threading
from functools import cache
from typing import Final

from botocore.config import Config

from gatecast import Publisher, tracing
from routes import environment
from routes.limits import MAX_PER_SECOND, Limits
from routes.log import logger
from routes.memberships import Memberships

DEFAULT_PER_SECOND: Final = 10

_SDK_CONFIG: Final = Config(
    # API Gateway waits 29 s for a response: a call fails for good within 9 s
    connect_timeout=1,
    read_timeout=3,
    retries={"mode": "standard", "total_max_attempts": 2},
    max_pool_connections=64,  # Lambda needs one; the local gateway runs the handlers on many threads
)
_COUNTER_CONFIG: Final = Config(
    # short timeouts, so that a slow counter does not delay the request; no retries, which might count it twice
    connect_timeout=1,
    read_timeout=1,
    retries={"mode": "standard", "total_max_attempts": 1},
    max_pool_connections=64,
)
_creation_lock: Final = threading.RLock()  # boto3 clients must be created on one thread at a time


def memberships() -> Memberships:
    with _creation_lock:
        return _memberships()


def publisher() -> Publisher:
    with _creation_lock:
        return _publisher()


def limits() -> Limits:
    with _creation_lock:
        return _limits()


def clear_caches() -> None:
    """Drops all created clients, for a process whose environment changes: tests and the embedded stack."""
    _memberships.cache_clear()
    _publisher.cache_clear()
    _limits.cache_clear()


@cache
def _memberships() -> Memberships:
    table_name = environment.required("GATECAST_TABLE")
    return Memberships(environment.client("dynamodb", _SDK_CONFIG), table_name)


@cache
def _publisher() -> Publisher:
    queue_url = environment.required("GATECAST_QUEUE_URL")
    try:
        tracing.enable("gatecast-routes")
    except tracing.NotInstalled as error:
        logger.error("traces.unavailable", extra={"reason": str(error)})
    return Publisher(environment.client("sqs", _SDK_CONFIG), queue_url)


@cache
def _limits() -> Limits:
    per_second = {
        action: environment.integer(name, MAX_PER_SECOND, default=DEFAULT_PER_SECOND)
        for action, name in (("join", "GATECAST_JOINS_PER_SECOND"), ("publish", "GATECAST_PUBLISHES_PER_SECOND"))
    }
    return Limits(environment.client("dynamodb", _COUNTER_CONFIG), environment.required("GATECAST_TABLE"), per_second)
