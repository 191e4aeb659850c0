"""What the handlers work with, made from the environment at first use and kept for the life of the process.

GATECAST_TABLE and GATECAST_QUEUE_URL name the table and the queue; the AWS SDK's own variables are honoured.
"""

import os
import threading
from functools import cache
from typing import Any, Final

import boto3
from botocore.config import Config

from gatecast import Publisher
from routes.memberships import Memberships

_SDK: Final = Config(
    # API Gateway waits 29 s for an answer: a call that fails for good does so within 9 s
    connect_timeout=1,
    read_timeout=3,
    retries={"mode": "standard", "total_max_attempts": 2},
    max_pool_connections=64,  # Lambda needs one; the local gateway runs the handlers on many threads
)
_making: Final = threading.RLock()  # boto3 makes clients on one thread at a time


class ConfigurationError(Exception):
    """An environment variable is missing. The message names it and holds nothing secret."""


def memberships() -> Memberships:
    with _making:
        return _memberships()


def publisher() -> Publisher:
    with _making:
        return _publisher()


def reset() -> None:
    """Forgets what was made, for a process whose environment changes: tests."""
    _memberships.cache_clear()
    _publisher.cache_clear()


@cache
def _memberships() -> Memberships:
    table_name = _required("GATECAST_TABLE")
    return Memberships(_client("dynamodb"), table_name)


@cache
def _publisher() -> Publisher:
    queue_url = _required("GATECAST_QUEUE_URL")
    return Publisher(_client("sqs"), queue_url)


def _required(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise ConfigurationError(f"{name} is not set")
    return value


def _client(service: str) -> Any:
    # boto3 itself reads AWS_DEFAULT_REGION only
    return boto3.session.Session(region_name=os.environ.get("AWS_REGION")).client(service, config=_SDK)
