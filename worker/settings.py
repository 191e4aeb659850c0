"""The worker's configuration: environment variables, read once and checked before anything starts."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, cast
from urllib.parse import SplitResult, urlsplit

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["json", "console"]
SlowClients = Literal["close", "keep"]


class InvalidSettings(ValueError):  # noqa: N818 - it says what the input is
    """A variable is missing or wrong; the message names it and says what it takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the variables of the same names say (GATECAST_QUEUE_URL is `queue_url`). See docs/reference.md."""

    queue_url: str
    dead_letter_queue_url: str | None = None
    table: str
    connections_endpoint: str
    http_host: str = "127.0.0.1"
    http_port: int = 9090
    max_in_flight: int = 256
    max_posts_per_second: int = 10_000
    max_broadcasts: int = 64
    visibility_seconds: int = 30
    slow_clients: SlowClients = "close"
    drain_seconds: int = 25
    log_level: LogLevel = "info"
    log_format: LogFormat = "json"

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Settings":
        """Raises InvalidSettings for the first variable that is missing or wrong."""
        read = _Reader(environ)
        return cls(
            queue_url=read.queue_url("GATECAST_QUEUE_URL"),
            dead_letter_queue_url=(
                read.queue_url("GATECAST_DEAD_LETTER_QUEUE_URL")
                if "GATECAST_DEAD_LETTER_QUEUE_URL" in environ
                else None
            ),
            table=read.matching("GATECAST_TABLE", _TABLE, "a DynamoDB table's name"),
            connections_endpoint=read.connections_endpoint("GATECAST_CONNECTIONS_ENDPOINT"),
            http_host=read.matching("GATECAST_HTTP_HOST", _HOST, "an address or a host name", default="127.0.0.1"),
            http_port=read.integer("GATECAST_HTTP_PORT", 1, 65_535, default=9090),
            max_in_flight=read.integer("GATECAST_MAX_IN_FLIGHT", 1, 10_000, default=256),
            max_posts_per_second=read.integer("GATECAST_MAX_POSTS_PER_SECOND", 1, 1_000_000, default=10_000),
            max_broadcasts=read.integer("GATECAST_MAX_BROADCASTS", 1, 10_000, default=64),
            visibility_seconds=read.integer("GATECAST_VISIBILITY_SECONDS", 5, 43_200, default=30),
            slow_clients=cast(SlowClients, read.one_of("GATECAST_SLOW_CLIENTS", ("close", "keep"), default="close")),
            drain_seconds=read.integer("GATECAST_DRAIN_SECONDS", 1, 115, default=25),
            log_level=cast(
                LogLevel, read.one_of("GATECAST_LOG_LEVEL", ("debug", "info", "warning", "error"), default="info")
            ),
            log_format=cast(LogFormat, read.one_of("GATECAST_LOG_FORMAT", ("json", "console"), default="json")),
        )


_TABLE: Final = re.compile(r"[A-Za-z0-9_.\-]{3,255}")
_LABEL: Final = r"(?!-)[A-Za-z0-9\-]{1,63}(?<!-)"
_HOST: Final = re.compile(rf"(?!.{{254}})({_LABEL}\.)*{_LABEL}\.?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")


def check_sdk_endpoints(environ: Mapping[str, str]) -> None:
    """Raises InvalidSettings for the first AWS_ENDPOINT_URL… that is wrong; an empty one is none.

    The SDK would look only when it makes a client, and takes schemes that nobody can speak.
    """
    takes = "the URL of a service (https://…)"
    for name, value in environ.items():
        if not name.startswith("AWS_ENDPOINT_URL") or not value:
            continue
        url = _split(name, value, takes)
        is_base = url.scheme in ("http", "https") and not (url.query or url.fragment or url.username)
        if not is_base or not _HOST.fullmatch(url.hostname or "") or re.search(r"\s", value):
            raise InvalidSettings(f"{name} is {value!r}: it takes {takes}")


@dataclass(frozen=True, slots=True)
class _Reader:
    environ: Mapping[str, str]

    def required(self, name: str, takes: str) -> str:
        value = self.environ.get(name)
        if value is None:
            raise InvalidSettings(f"{name} is missing: it takes {takes}")
        if not value:
            raise InvalidSettings(f"{name} is empty: it takes {takes}")
        return value

    def matching(self, name: str, pattern: re.Pattern[str], takes: str, *, default: str | None = None) -> str:
        if default is not None and name not in self.environ:
            return default
        value = self.required(name, takes)
        if not pattern.fullmatch(value):
            raise InvalidSettings(f"{name} is {value!r}: it takes {takes}")
        return value

    def integer(self, name: str, lowest: int, highest: int, *, default: int) -> int:
        value = self.environ.get(name)
        if value is None:
            return default
        if not re.fullmatch(r"[0-9]{1,10}", value) or not lowest <= int(value) <= highest:
            raise InvalidSettings(f"{name} is {value!r}: it takes a whole number from {lowest:,} to {highest:,}")
        return int(value)

    def one_of(self, name: str, allowed: tuple[str, ...], *, default: str) -> str:
        value = self.environ.get(name, default)
        if value not in allowed:
            raise InvalidSettings(f"{name} is {value!r}: it takes one of {', '.join(allowed)}")
        return value

    def queue_url(self, name: str) -> str:
        takes = "the URL of an SQS queue"
        value = self.required(name, takes)
        url = _split(name, value, takes)
        if url.scheme not in ("http", "https") or not url.hostname or not url.path.strip("/"):
            raise InvalidSettings(f"{name} is {value!r}: it takes {takes} (https://…/queue-name)")
        return value

    def connections_endpoint(self, name: str) -> str:
        takes = "https://{api}.execute-api.{region}.amazonaws.com/{stage}, or a custom domain and its base path"
        value = self.required(name, takes).rstrip("/")
        url = _split(name, value, takes)
        if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment or url.username:
            raise InvalidSettings(f"{name} is {value!r}: it takes {takes}")
        if "@connections" in value:
            raise InvalidSettings(f"{name} is {value!r}: leave out /@connections, the worker adds it")
        if ".execute-api." in url.hostname and url.path.count("/") != 1:
            raise InvalidSettings(f"{name} is {value!r}: an execute-api address ends in the stage and nothing else")
        if not re.fullmatch(r"(/[A-Za-z0-9._~\-]+)*", url.path):
            raise InvalidSettings(f"{name} is {value!r}: its path may hold letters, digits and . _ ~ - only")
        return value


def _split(name: str, value: str, takes: str) -> SplitResult:
    try:
        url = urlsplit(value)
        _ = url.port
    except ValueError as error:
        raise InvalidSettings(f"{name} is {value!r}: it takes {takes} ({error})") from None
    return url
