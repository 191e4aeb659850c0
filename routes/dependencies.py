"""The handlers' dependencies: created from the environment at first use, kept for the life of the process.

GATECAST_TABLE and GATECAST_QUEUE_URL name the table and the queue, GATECAST_PAYLOAD_BUCKET the bucket of payloads, if
there is one, and GATECAST_CONNECTIONS_ENDPOINT the API's address, for closing connections. GATECAST_JOINS_PER_SECOND
(also for leaving, and for reading), GATECAST_PUBLISHES_PER_SECOND and GATECAST_ROOMS_PER_CONNECTION limit clients. The
AWS SDK's own variables are honoured.
"""

import os
import threading
from functools import cache
from typing import Any, Final

from botocore.config import Config

from gatecast import Publisher, tracing
from gatecast.references import addressing_style
from gatecast.rooms.counts import Counts
from gatecast.rooms.errors import NoPublisher
from gatecast.rooms.memberships import DEFAULT_ROOMS, MAX_ROOMS, Memberships
from gatecast.rooms.presence import Presence
from gatecast.rooms.revocations import Revocations
from gatecast.rooms.settings_cache import RoomSettingsCache
from routes import environment
from routes.environment import ConfigurationError
from routes.history import History
from routes.limits import MAX_PER_SECOND, Limits
from routes.log import logger
from routes.observing import OBSERVER
from routes.payloads import Payloads
from routes.rejections import Rejections
from routes.streams import Streams

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


def settings() -> RoomSettingsCache:
    with _creation_lock:
        return _settings()


def history() -> History:
    with _creation_lock:
        return _history()


def presence() -> Presence:
    with _creation_lock:
        return _presence()


def s3() -> Any:
    """A client that makes no calls: it signs URLs of objects in the bucket of payloads."""
    with _creation_lock:
        return _s3()


def counts() -> Counts:
    with _creation_lock:
        return _counts()


def publisher() -> Publisher:
    with _creation_lock:
        return _publisher()


def payload_bucket() -> str | None:
    """The bucket of payloads, if there is one."""
    return os.environ.get("GATECAST_PAYLOAD_BUCKET") or None


def storing_publisher() -> Publisher:
    """A publisher that stores large payloads in the bucket, if there is one. Only for backends."""
    with _creation_lock:
        return _storing_publisher()


def revocations() -> Revocations:
    with _creation_lock:
        return _revocations()


def limits() -> Limits:
    with _creation_lock:
        return _limits()


def rejections() -> Rejections | None:
    """None if GATECAST_CONNECTIONS_ENDPOINT is not set: then no connection is closed, and nothing needs counting."""
    with _creation_lock:
        return _rejections()


def clear_caches() -> None:
    """Drops all created clients, for a process whose environment changes: tests and the embedded stack."""
    for created in (
        *(_dynamodb, _settings, _memberships, _history, _presence, _counts),
        *(_publisher, _storing_publisher, _revocations, _limits, _rejections, _s3_session, _s3),
    ):
        created.cache_clear()


@cache
def _dynamodb() -> Any:
    return environment.client("dynamodb", _SDK_CONFIG)


@cache
def _settings() -> RoomSettingsCache:
    table_name = environment.required("GATECAST_TABLE")  # first: without it, nothing is worth a client
    return RoomSettingsCache(_dynamodb(), table_name, observer=OBSERVER)


@cache
def _history() -> History:
    table_name = environment.required("GATECAST_TABLE")
    bucket = payload_bucket()
    payloads = Payloads(bucket, s3, credentials_expire_at=lambda: environment.credentials_expire_at(_s3_session()))
    return History(Streams(_dynamodb(), table_name), payloads=payloads)


@cache
def _s3_session() -> Any:
    return environment.session()


@cache
def _s3() -> Any:
    return _s3_client(Config(signature_version="s3v4"))


def _s3_client(config: Config) -> Any:
    style = addressing_style(_s3_session().client("s3").meta.endpoint_url)
    return _s3_session().client("s3", config=config.merge(Config(s3={"addressing_style": style})))


@cache
def _counts() -> Counts:
    table_name = environment.required("GATECAST_TABLE")
    return Counts(_dynamodb(), table_name, _settings(), observer=OBSERVER)


@cache
def _presence() -> Presence:
    table_name = environment.required("GATECAST_TABLE")
    return Presence(
        _dynamodb(),
        table_name,
        _settings(),
        _counts(),
        _publisher_of_events,
        limit=lambda connection: limits().count("announce", connection),
        observer=OBSERVER,
    )


def _publisher_of_events() -> Publisher:
    try:
        return publisher()
    except ConfigurationError as error:
        raise NoPublisher(str(error)) from None


@cache
def _memberships() -> Memberships:
    table_name = environment.required("GATECAST_TABLE")
    max_rooms = environment.integer("GATECAST_ROOMS_PER_CONNECTION", MAX_ROOMS, default=DEFAULT_ROOMS)
    return Memberships(
        _dynamodb(),
        table_name,
        max_rooms=max_rooms,
        settings=_settings(),
        presence=_presence(),
        observer=OBSERVER,
    )


@cache
def _publisher() -> Publisher:
    queue_url = environment.required("GATECAST_QUEUE_URL")
    try:
        tracing.enable("gatecast-routes")
    except tracing.NotInstalled as error:
        logger.error("traces.unavailable", extra={"reason": str(error)})
    return Publisher(environment.client("sqs", _SDK_CONFIG), queue_url)


@cache
def _storing_publisher() -> Publisher:
    without_bucket, bucket = _publisher(), payload_bucket()
    if bucket is None:
        return without_bucket
    queue_url = environment.required("GATECAST_QUEUE_URL")
    return Publisher(environment.client("sqs", _SDK_CONFIG), queue_url, s3=_s3_client(_SDK_CONFIG), bucket=bucket)


@cache
def _revocations() -> Revocations:
    table_name = environment.required("GATECAST_TABLE")
    return Revocations(_dynamodb(), table_name)


@cache
def _limits() -> Limits:
    joins = environment.integer("GATECAST_JOINS_PER_SECOND", MAX_PER_SECOND, default=DEFAULT_PER_SECOND)
    publishes = environment.integer("GATECAST_PUBLISHES_PER_SECOND", MAX_PER_SECOND, default=DEFAULT_PER_SECOND)
    per_second = {"join": joins, "leave": joins, "read": joins, "announce": joins, "publish": publishes}
    table_name = environment.required("GATECAST_TABLE")
    return Limits(environment.client("dynamodb", _COUNTER_CONFIG), table_name, per_second)


@cache
def _rejections() -> Rejections | None:
    endpoint = environment.connections_endpoint()
    if endpoint is None:
        logger.warning("rejections.unlimited", extra={"reason": "GATECAST_CONNECTIONS_ENDPOINT is not set"})
        return None
    connections = environment.client("apigatewaymanagementapi", _COUNTER_CONFIG, endpoint_url=endpoint)
    return Rejections(
        environment.client("dynamodb", _COUNTER_CONFIG),
        environment.required("GATECAST_TABLE"),
        lambda connection_id: connections.delete_connection(ConnectionId=connection_id),
    )
