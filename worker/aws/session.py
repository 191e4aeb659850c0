"""The SDK's session and credentials. Regions, endpoints, certificates and credentials are found as the SDK finds them.

The SDK's clients make no calls: they are opened to find a service's endpoint, and closed. Only that of S3 makes some
(`worker.aws.payloads`). No other module of the worker imports aioboto3, and this one uses only the session of
aiobotocore in it (docs/adr/0024-leaving-aioboto3.md).
"""

import asyncio
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

from aiobotocore.session import AioSession
from botocore.exceptions import BotoCoreError
from botocore.httpsession import get_cert_path

from worker.aws.credentials import translate_errors
from worker.aws.errors import sdk_errors
from worker.aws.json_service import JsonService
from worker.observe.health import Health
from worker.observe.metrics import ServiceCalls
from worker.ports import DependencyError
from worker.settings import ConfigurationError, check_regions, check_sdk_endpoints
from worker.transport.signing import Credentials

try:
    import aioboto3
except ImportError:  # it is not among the requirements: `make test-aiobotocore`
    aioboto3 = None

LONG_POLL_SECONDS: Final = 5
"""SQS allows 20. A drain waits for the open poll, and one poll per five seconds costs next to nothing."""
_CREDENTIALS_SECONDS: Final = 10.0
_CREDENTIALS_RETRY_SECONDS: Final = 1.0
_REGION: Final = re.compile(r"(?![0-9]+\Z)(?!-)[A-Za-z0-9\-]{1,63}(?<!-)")
"""What the SDK accepts as part of a host name."""


def find_session(environ: Mapping[str, str]) -> AioSession:
    """Create the session. Raises ConfigurationError if an endpoint is wrong or in another Region than the session.

    The same if the Region is missing or invalid. AWS_REGION takes precedence, although Python's SDK ignores it.
    """
    check_sdk_endpoints(environ)
    try:
        session = AioSession() if aioboto3 is None else aioboto3.Session()._session  # noqa: SLF001 - ADR 24
        if environ.get("AWS_REGION"):
            session.set_config_variable("region", environ["AWS_REGION"])
        translate_errors(session)
        region = session_region(session)
    except (BotoCoreError, ValueError) as error:
        raise ConfigurationError(f"AWS_PROFILE or the SDK's files are wrong: {error}") from None
    if not region:
        raise ConfigurationError("AWS_REGION is missing: expected the Region of the queue, the table and the API")
    if not _REGION.fullmatch(region):
        name = next(filter(environ.get, ("AWS_REGION", "AWS_DEFAULT_REGION")), "The profile's Region")
        raise ConfigurationError(f"{name} is {region!r}: expected a Region's name, such as eu-west-1")
    check_regions(environ, region)
    return session


def session_region(session: AioSession) -> str:
    """The session's Region; empty if it has none."""
    return session.get_config_variable("region") or ""


@dataclass(frozen=True, slots=True)
class AwsServices:
    sqs: JsonService
    dynamodb: JsonService


async def find_services(
    session: AioSession, *, connections: int, tls: ssl.SSLContext, calls: ServiceCalls
) -> AwsServices:
    """SQS and DynamoDB at the endpoints that the SDK would call. `calls` counts every call.

    Raises ConfigurationError.
    """

    async def find_service(service: str, prefix: str) -> JsonService:
        try:
            async with session.create_client(service) as client:
                url = client.meta.endpoint_url
        except ValueError as error:
            raise ConfigurationError(f"AWS_PROFILE or the SDK's files are wrong: {error}") from None
        return JsonService(
            url,
            region=session_region(session),
            service=service,
            prefix=prefix,
            json_version="1.0",
            connections=connections,
            tls=tls,
            calls=calls,
        )

    return AwsServices(await find_service("sqs", "AmazonSQS"), await find_service("dynamodb", "DynamoDB_20120810"))


def tls_context(session: AioSession) -> ssl.SSLContext:
    """A TLS context that trusts what the SDK trusts: AWS_CA_BUNDLE, the profile's bundle, or the SDK's own.

    Raises ConfigurationError if the bundle cannot be used.
    """
    bundle = session.get_config_variable("ca_bundle")
    try:
        return ssl.create_default_context(cafile=bundle or get_cert_path(True))
    except OSError as error:
        raise ConfigurationError(f"AWS_CA_BUNDLE is {bundle!r}, which cannot be used: {error}") from None


class SupportsCredentials(Protocol):
    def use(self, credentials: Credentials) -> None: ...


class CredentialsKeeper:
    """Passes fresh credentials to receivers, well before the old ones expire (the SDK refreshes them on access)."""

    def __init__(self, session: AioSession, health: Health) -> None:
        self.expires_at: float | None = None
        """When the latest credentials expire, in seconds since the epoch; None if they do not expire."""
        self._session = session
        self._health = health

    async def find(self) -> Credentials:
        """Wait until credentials are found. SDK clients created before that would never find any."""
        while True:
            try:
                with sdk_errors():
                    found = await self._session.get_credentials()
                    frozen = await found.get_frozen_credentials() if found is not None else None
                if frozen is not None:
                    self.expires_at = _expiry(found)
                    self._health.recovered("credentials")
                    return Credentials(frozen.access_key, frozen.secret_key, frozen.token or None)
                self._health.failed("credentials", "the SDK found no credentials")
            except DependencyError as error:
                self._health.failed("credentials", error.code)
            await asyncio.sleep(_CREDENTIALS_RETRY_SECONDS)

    async def run(self, *receivers: SupportsCredentials) -> None:
        """Pass the current credentials to the receivers periodically, until cancelled."""
        while True:
            credentials = await self.find()
            for receiver in receivers:
                receiver.use(credentials)
            await asyncio.sleep(_CREDENTIALS_SECONDS)


def _expiry(credentials: Any) -> float | None:
    """Only refreshable credentials have an expiry, and botocore exposes it only as a private attribute."""
    expiry = getattr(credentials, "_expiry_time", None)
    return expiry.timestamp() if isinstance(expiry, datetime) else None
