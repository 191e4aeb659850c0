"""The worker's configuration: environment variables, read once and checked before anything starts.

Each field of `Settings` is one variable. Its name, type, range, default and meaning are defined there and nowhere else;
a test compares the table in the documents with them.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from typing import Any, Final, Literal, get_args
from urllib.parse import SplitResult, urlsplit

from gatecast.addresses import WrongAddress, connections_endpoint, is_queue_url, may_be_public, region_of
from gatecast.queue_check import is_same_queue
from gatecast.variables import unknown_variables
from worker.members_setting import InvalidMembers, MembersSource

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["json", "console"]
SlowClients = Literal["close", "keep"]

_TABLE: Final = re.compile(r"[A-Za-z0-9_.\-]{3,255}")
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]")
_LABEL: Final = r"(?!-)[A-Za-z0-9\-]{1,63}(?<!-)"
_HOST: Final = re.compile(rf"(?!.{{254}})({_LABEL}\.)*{_LABEL}\.?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
_PREFIX: Final = "GATECAST_"


class ConfigurationError(ValueError):
    """A variable is missing or wrong; the message names it and says what is expected."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value: what is expected, in words, and how it is parsed. `parse` raises ValueError."""

    expected: str
    parse: Callable[[str], object]


def _integer(lowest: int, highest: int) -> Kind:
    def parse(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,10}", value) or not lowest <= int(value) <= highest:
            raise ValueError
        return int(value)

    return Kind(f"a whole number from {lowest:,} to {highest:,}", parse)


def _one_of(literal: Any) -> Kind:
    allowed = get_args(literal)

    def parse(value: str) -> str:
        if value.lower() not in allowed:
            raise ValueError
        return value.lower()

    return Kind(f"one of {', '.join(allowed)}", parse)


def _matching(pattern: re.Pattern[str], expected: str) -> Kind:
    def parse(value: str) -> str:
        if not pattern.fullmatch(value):
            raise ValueError
        return value

    return Kind(expected, parse)


def _queue_url(value: str) -> str:
    if not is_queue_url(value):
        raise ValueError
    return value


def _split(value: str) -> SplitResult:
    """Raises ValueError, also for a port that is no number."""
    url = urlsplit(value)
    _ = url.port
    return url


_QUEUE_URL: Final = Kind("the URL of an SQS queue (https://…/queue-name)", _queue_url)
_MEMBERS: Final = Kind("a JSON object that describes the table or index", MembersSource.parse)
_CONNECTIONS_ENDPOINT: Final = Kind(
    "https://{api}.execute-api.{region}.amazonaws.com/{stage}, or a custom domain and its base path",
    connections_endpoint,
)


def _variable(kind: Kind, meaning: str, *, default: Any = MISSING) -> Any:
    return dataclasses.field(default=default, metadata={"kind": kind, "meaning": meaning})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One field per variable: GATECAST_QUEUE_URL is `queue_url`."""

    queue_url: str = _variable(_QUEUE_URL, "standard or FIFO (`.fifo`)")
    dead_letter_queue_url: str | None = _variable(
        _QUEUE_URL, "where poison and missed deliveries go; without it they are logged, with the ids", default=None
    )
    receipts_queue_url: str | None = _variable(
        _QUEUE_URL, "where [receipts](#receipts) go; without it there are none", default=None
    )
    table: str = _variable(_matching(_TABLE, "a DynamoDB table's name"), "the DynamoDB table")
    members: MembersSource | None = _variable(
        _MEMBERS,
        "[a table or index of your own](#your-own-table) that holds the members of rooms; without it they are "
        "memberships in `GATECAST_TABLE`",
        default=None,
    )
    payload_bucket: str | None = _variable(
        _matching(_BUCKET, "an S3 bucket's name"),
        "the bucket of [large payloads](reference-publishers.md#large-payloads), in the worker's Region: the only one "
        "that broadcasts may refer to. Without it, those that refer to one are dead letters",
        default=None,
    )
    connections_endpoint: str = _variable(
        _CONNECTIONS_ENDPOINT, "the API's address; `http://` only for addresses that are not public"
    )
    http_host: str = _variable(
        _matching(_HOST, "an address or a host name"),
        "where `/metrics`, `/livez`, `/readyz` and `/broadcasts` are served; the image sets 0.0.0.0",
        default="127.0.0.1",
    )
    http_port: int = _variable(
        _integer(1, 65_535), "its port; if it is in use, the worker ends with exit code 1", default=9090
    )
    max_in_flight: int = _variable(
        _integer(1, 10_000), "posts in flight at once, each on its own connection: rate × latency", default=256
    )
    max_posts_per_second: int = _variable(_integer(1, 1_000_000), "the ceiling of this worker's rate", default=10_000)
    max_broadcasts: int = _variable(
        _integer(1, 10_000),
        "places: broadcasts delivered at once. A parked one holds none, and one room gets half of them at most",
        default=64,
    )
    visibility_seconds: int = _variable(
        _integer(5, 43_200), "the lease on a queue message, extended while its broadcast runs", default=30
    )
    slow_clients: SlowClients = _variable(
        _one_of(SlowClients),
        "what happens to a connection whose client [does not read](failure-modes.md#clients-that-do-not-read): `close` "
        "needs the permission to DELETE; `keep` leaves it open, and its deliveries are missed at once until it reads",
        default="close",
    )
    drain_seconds: int = _variable(
        _integer(1, 115), "how long a drain may take; keep it below the container's stop timeout", default=25
    )
    log_level: LogLevel = _variable(_one_of(LogLevel), "the lowest level that is logged", default="info")
    log_format: LogFormat = _variable(_one_of(LogFormat), "`console` is for people", default="json")

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Settings":
        """Raises ConfigurationError for the first variable that is missing or wrong."""
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            name, kind = f"{_PREFIX}{field.name.upper()}", field.metadata["kind"]
            if name not in environ and field.default is MISSING:
                misspelt = [each for each, nearest in unknown_variables(environ).items() if nearest == name]
                hint = f" ({', '.join(misspelt)} is set)" if misspelt else ""
                raise ConfigurationError(f"{name} is missing: expected {kind.expected}{hint}")
            if name in environ:
                values[field.name] = _parse(name, environ[name], kind)
        settings = cls(**values)
        dead_letter_queue_url, receipts_queue_url = settings.dead_letter_queue_url, settings.receipts_queue_url
        if dead_letter_queue_url and is_same_queue(settings.queue_url, dead_letter_queue_url):
            raise ConfigurationError(
                f"GATECAST_DEAD_LETTER_QUEUE_URL is {_shown(dead_letter_queue_url)}, the same queue as "
                "GATECAST_QUEUE_URL: expected another one, or dead letters would circle"
            )
        others = {"GATECAST_QUEUE_URL": settings.queue_url, "GATECAST_DEAD_LETTER_QUEUE_URL": dead_letter_queue_url}
        for name, url in others.items():
            if receipts_queue_url and url and is_same_queue(url, receipts_queue_url):
                raise ConfigurationError(
                    f"GATECAST_RECEIPTS_QUEUE_URL is {_shown(receipts_queue_url)}, the same queue as {name}: expected "
                    "another one, or receipts would be taken for broadcasts"
                )
        gone_queue_url = settings.members.gone_queue_url if settings.members else None
        for name, url in (("QUEUE", settings.queue_url), ("DEAD_LETTER_QUEUE", dead_letter_queue_url)):
            if gone_queue_url and url and is_same_queue(gone_queue_url, url):
                raise ConfigurationError(
                    f"GATECAST_MEMBERS: on_gone is {_shown(gone_queue_url)}, the same queue as GATECAST_{name}_URL: "
                    "expected another one, from which your own program receives"
                )
        return settings


def _parse(name: str, value: str, kind: Kind) -> object:
    """Raises ConfigurationError."""
    if not value:
        raise ConfigurationError(f"{name} is empty: expected {kind.expected}")
    try:
        return kind.parse(value)
    except InvalidMembers as wrong:
        raise ConfigurationError(f"{name}: {wrong}") from None
    except WrongAddress as wrong:
        raise ConfigurationError(f"{name} is {_shown(value)}: {str(wrong) or f'expected {kind.expected}'}") from None
    except ValueError:
        raise ConfigurationError(f"{name} is {_shown(value)}: expected {kind.expected}") from None


def _shown(value: str) -> str:
    """The value for an error message, without a password that a URL may contain."""
    return repr(re.sub(r"//[^/]*@", "//…@", value))


def check_sdk_endpoints(environ: Mapping[str, str]) -> None:
    """Raises ConfigurationError for the first AWS_ENDPOINT_URL… that is wrong; an empty one is none.

    The SDK would check it only when it makes a client, and accepts schemes it does not support.
    """
    kind = Kind("the URL of a service (https://…)", _service_url)
    for name, value in environ.items():
        if name.startswith("AWS_ENDPOINT_URL") and value:
            _parse(name, value, kind)


def insecure_endpoints(environ: Mapping[str, str]) -> list[str]:
    """The names of the AWS_ENDPOINT_URL… that lead to a public address by http://."""
    named = ((name, value) for name, value in sorted(environ.items()) if name.startswith("AWS_ENDPOINT_URL"))
    return [name for name, value in named if value.lower().startswith("http:") and may_be_public(value)]


def check_regions(environ: Mapping[str, str], region: str) -> None:
    """Raises ConfigurationError for the first URL that is in another Region than `region`.

    Calls there would be signed for the wrong Region, and rejected.
    """
    ours = (
        *("GATECAST_QUEUE_URL", "GATECAST_DEAD_LETTER_QUEUE_URL", "GATECAST_RECEIPTS_QUEUE_URL"),
        "GATECAST_CONNECTIONS_ENDPOINT",
    )
    for name, value in environ.items():
        if name in ours or name.startswith("AWS_ENDPOINT_URL"):
            found = region_of(value)
            if found not in (None, region):
                raise ConfigurationError(
                    f"{name} is {_shown(value)}, which is in the Region {found}, but the worker's is {region}: "
                    "expected the queues, the table and the API in one Region, and AWS_REGION to name it"
                )


def _service_url(value: str) -> str:
    url = _split(value)
    is_base = url.scheme in ("http", "https") and not (url.query or url.fragment or url.username)
    if not is_base or not _HOST.fullmatch(url.hostname or "") or re.search(r"\s", value):
        raise ValueError
    return value
