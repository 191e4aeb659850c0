"""The SDK's session, clients and credentials. Regions, endpoints, certificates and credentials are found its way."""

import asyncio
import re
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

import aioboto3
from aiobotocore.config import AioConfig
from botocore.exceptions import BotoCoreError
from botocore.httpsession import get_cert_path

from worker.aws.credentials import translate_errors
from worker.aws.json_service import JsonService
from worker.health import Health
from worker.http.signing import Credentials
from worker.metrics import ServiceCalls
from worker.perseverance import DEPENDENCY_ERRORS, describe
from worker.settings import InvalidSettings, check_sdk_endpoints

LONG_POLL_SECONDS: Final = 5
"""SQS allows 20. A drain waits for the open poll, and one poll every five seconds costs next to nothing."""
_CONNECTIONS: Final = 32
_CREDENTIALS_SECONDS: Final = 10.0
_CREDENTIALS_AGAIN_SECONDS: Final = 1.0
_ERROR_STATUS: Final = 300
_REGION: Final = re.compile(r"(?![0-9]+\Z)(?!-)[A-Za-z0-9\-]{1,63}(?<!-)")
"""What the SDK takes as a part of its host names."""


def find_session(environ: Mapping[str, str]) -> aioboto3.Session:
    """Raises InvalidSettings for a wrong endpoint, and if no Region is set anywhere or it can be none.

    AWS_REGION wins, though Python's SDK does not know it.
    """
    check_sdk_endpoints(environ)
    try:
        session = aioboto3.Session(region_name=environ.get("AWS_REGION") or None)
        translate_errors(session)
    except (BotoCoreError, ValueError) as error:
        raise InvalidSettings(f"AWS_PROFILE or the SDK's files are wrong: {error}") from None
    if not session.region_name:
        raise InvalidSettings("AWS_REGION is missing: it takes the Region of the queue, the table and the API")
    if not _REGION.fullmatch(session.region_name):
        name = next(filter(environ.get, ("AWS_REGION", "AWS_DEFAULT_REGION")), "The profile's Region")
        raise InvalidSettings(f"{name} is {session.region_name!r}: it takes a Region's name, such as eu-west-1")
    return session


@dataclass(frozen=True, slots=True)
class Clients:
    """The SDK's clients, and what carries their hot calls."""

    sqs: Any
    dynamodb: Any
    hot_sqs: JsonService
    hot_dynamodb: JsonService


@asynccontextmanager
async def open_clients(
    session: aioboto3.Session, *, connections: int, tls: ssl.SSLContext, calls: ServiceCalls
) -> AsyncIterator[Clients]:
    """The SDK's retries are off: there is one retry layer, and it is ours. `calls` hears of every call."""
    config = AioConfig(
        connect_timeout=3, read_timeout=10, retries={"total_max_attempts": 1}, max_pool_connections=_CONNECTIONS
    )
    async with AsyncExitStack() as stack:
        try:
            sqs = await stack.enter_async_context(session.client("sqs", config=config))
            dynamodb = await stack.enter_async_context(session.client("dynamodb", config=config))
        except ValueError as error:
            raise InvalidSettings(f"AWS_PROFILE or the SDK's files are wrong: {error}") from None
        for client in (sqs, dynamodb):
            _tell(calls, client)
        hot = [
            JsonService(
                client.meta.endpoint_url,
                region=session.region_name,
                service=service,
                prefix=prefix,
                json_version="1.0",
                connections=connections,
                tls=tls,
                calls=calls,
            )
            for client, service, prefix in (
                (sqs, "sqs", "AmazonSQS"),
                (dynamodb, "dynamodb", "DynamoDB_20120810"),
            )
        ]
        yield Clients(sqs, dynamodb, *hot)


def _tell(calls: ServiceCalls, client: Any) -> None:
    """Let `calls` hear of the calls of an SDK's client, by the SDK's own events."""
    service = client.meta.service_model.service_name

    def before(context: dict[str, Any], **_: Any) -> None:
        context["gatecast_started_at"] = time.monotonic()

    def after(http_response: Any, model: Any, context: dict[str, Any], **_: Any) -> None:
        seconds = time.monotonic() - context["gatecast_started_at"]
        calls.answered(service, model.name, seconds, error=http_response.status_code >= _ERROR_STATUS)

    def failed(event_name: str, **_: Any) -> None:
        calls.failed(service, event_name.rpartition(".")[2])

    client.meta.events.register("before-call", before)
    client.meta.events.register("after-call", after)
    client.meta.events.register("after-call-error", failed)


def tls_context(session: aioboto3.Session) -> ssl.SSLContext:
    """Trusts what the SDK trusts: AWS_CA_BUNDLE or the profile's bundle, else the one that comes with it.

    Raises InvalidSettings if the bundle cannot be used.
    """
    bundle = session._session.get_config_variable("ca_bundle")  # noqa: SLF001 - aioboto3 offers no other way to ask
    try:
        return ssl.create_default_context(cafile=bundle or get_cert_path(True))
    except OSError as error:
        raise InvalidSettings(f"AWS_CA_BUNDLE is {bundle!r}, which cannot be used: {error}") from None


class TakesCredentials(Protocol):
    def use(self, credentials: Credentials) -> None: ...


class CredentialsKeeper:
    """Keeps receivers of credentials up to date, well before the old ones expire (the SDK renews them when asked)."""

    def __init__(self, session: aioboto3.Session, health: Health) -> None:
        self.expires_at: float | None = None
        """When those found last expire, in seconds since the epoch; None if they do not."""
        self._session = session
        self._health = health

    async def find(self) -> Credentials:
        """Returns when there are some: the SDK's clients must not be made before, for they would never find any."""
        while True:
            try:
                found = await self._session.get_credentials()
                if found is not None:
                    frozen = await found.get_frozen_credentials()
                    self.expires_at = _expiry(found)
                    self._health.ok("credentials")
                    return Credentials(frozen.access_key, frozen.secret_key, frozen.token or None)
                self._health.failed("credentials", "the SDK finds none")
            except DEPENDENCY_ERRORS as error:
                self._health.failed("credentials", describe(error))
            await asyncio.sleep(_CREDENTIALS_AGAIN_SECONDS)

    async def run(self, *receivers: TakesCredentials) -> None:
        """Until cancelled. Receivers are told again and again."""
        while True:
            credentials = await self.find()
            for receiver in receivers:
                receiver.use(credentials)
            await asyncio.sleep(_CREDENTIALS_SECONDS)


def _expiry(credentials: Any) -> float | None:
    """Only credentials that are renewed know it, and tell nobody else."""
    expiry = getattr(credentials, "_expiry_time", None)
    return expiry.timestamp() if isinstance(expiry, datetime) else None
