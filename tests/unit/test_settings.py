"""Every environment variable: if it is missing, empty, out of range or of the wrong type, the error names it."""

import dataclasses
from pathlib import Path

import pytest

from worker.settings import ConfigurationError, Settings, check_sdk_endpoints

REQUIRED = {
    "GATECAST_QUEUE_URL": "https://sqs.eu-west-1.amazonaws.com/123456789012/broadcasts",
    "GATECAST_TABLE": "gatecast",
    "GATECAST_CONNECTIONS_ENDPOINT": "https://abc.execute-api.eu-west-1.amazonaws.com/live",
}

REFERENCE = Path(__file__).parents[2] / "docs" / "reference-operators.md"


def test_the_reference_lists_exactly_these_variables() -> None:
    """With their defaults, what is expected, and their meanings."""
    section = REFERENCE.read_text().partition("## Worker settings")[2].partition("\n## ")[0]
    defaults = {dataclasses.MISSING: "required", None: "none"}
    assert [line for line in section.splitlines() if line.startswith("| `")] == [
        f"| `GATECAST_{field.name.upper()}` | {defaults.get(field.default, field.default)} "
        f"| {field.metadata['kind'].expected} | {field.metadata['meaning']} |"
        for field in dataclasses.fields(Settings)
    ]


def test_defaults() -> None:
    settings = Settings.from_environ(REQUIRED)
    assert (settings.http_host, settings.http_port) == ("127.0.0.1", 9090)
    assert (settings.max_in_flight, settings.max_posts_per_second, settings.max_broadcasts) == (256, 10_000, 64)
    assert (settings.visibility_seconds, settings.drain_seconds) == (30, 25)
    assert settings.slow_clients == "close"
    assert (settings.log_level, settings.log_format, settings.dead_letter_queue_url) == ("info", "json", None)


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize("value", [None, ""])
def test_required_variables(name: str, value: str | None) -> None:
    environ = {key: given for key, given in REQUIRED.items() if key != name}
    if value is not None:
        environ[name] = value
    with pytest.raises(ConfigurationError, match=f"^{name} is (missing|empty)"):
        Settings.from_environ(environ)


@pytest.mark.parametrize(
    ("name", "lowest", "highest"),
    [
        ("GATECAST_HTTP_PORT", 1, 65_535),
        ("GATECAST_MAX_IN_FLIGHT", 1, 10_000),
        ("GATECAST_MAX_POSTS_PER_SECOND", 1, 1_000_000),
        ("GATECAST_MAX_BROADCASTS", 1, 10_000),
        ("GATECAST_VISIBILITY_SECONDS", 5, 43_200),
        ("GATECAST_DRAIN_SECONDS", 1, 115),
    ],
)
def test_ranges(name: str, lowest: int, highest: int) -> None:
    field = name.removeprefix("GATECAST_").lower()
    for allowed in (lowest, highest):
        assert getattr(Settings.from_environ({**REQUIRED, name: str(allowed)}), field) == allowed
    for invalid in (str(lowest - 1), str(highest + 1), "", "x", "1.5", " 7", "+7", "1_0", "٣", "-1"):
        with pytest.raises(ConfigurationError, match=f"^{name} "):
            Settings.from_environ({**REQUIRED, name: invalid})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GATECAST_LOG_LEVEL", "INFO"),
        ("GATECAST_LOG_FORMAT", "text"),
        ("GATECAST_SLOW_CLIENTS", ""),
        ("GATECAST_SLOW_CLIENTS", "Close"),
        ("GATECAST_SLOW_CLIENTS", "drop"),
        ("GATECAST_QUEUE_URL", "broadcasts"),
        ("GATECAST_QUEUE_URL", "https://sqs.eu-west-1.amazonaws.com/"),
        ("GATECAST_DEAD_LETTER_QUEUE_URL", ""),
        ("GATECAST_DEAD_LETTER_QUEUE_URL", "arn:aws:sqs:eu-west-1:123456789012:dead"),
        ("GATECAST_TABLE", "a b"),
        ("GATECAST_HTTP_HOST", "not a host"),
        ("GATECAST_HTTP_HOST", "-"),
        ("GATECAST_HTTP_HOST", "a..b"),
        ("GATECAST_HTTP_HOST", "a" * 64),
        ("GATECAST_HTTP_HOST", "a." * 127),
        ("GATECAST_CONNECTIONS_ENDPOINT", "wss://abc.execute-api.eu-west-1.amazonaws.com/live"),
        ("GATECAST_CONNECTIONS_ENDPOINT", "https://abc.execute-api.eu-west-1.amazonaws.com"),
        ("GATECAST_CONNECTIONS_ENDPOINT", "https://abc.execute-api.eu-west-1.amazonaws.com/live/x"),
        ("GATECAST_CONNECTIONS_ENDPOINT", "https://ws.example.com/live/@connections"),
        ("GATECAST_CONNECTIONS_ENDPOINT", "https://ws.example.com/?a=b"),
        ("GATECAST_CONNECTIONS_ENDPOINT", "https://ws.example.com:port"),
        ("GATECAST_CONNECTIONS_ENDPOINT", "ws.example.com"),
    ],
)
def test_invalid_values(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name} is "):
        Settings.from_environ({**REQUIRED, name: value})


@pytest.mark.parametrize("value", ["close", "keep"])
def test_slow_clients(value: str) -> None:
    assert Settings.from_environ({**REQUIRED, "GATECAST_SLOW_CLIENTS": value}).slow_clients == value


def test_the_error_for_slow_clients_lists_the_allowed_values() -> None:
    with pytest.raises(ConfigurationError, match=r"^GATECAST_SLOW_CLIENTS is 'drop': expected one of close, keep$"):
        Settings.from_environ({**REQUIRED, "GATECAST_SLOW_CLIENTS": "drop"})


@pytest.mark.parametrize(
    "endpoint", ["https://ws.example.com", "https://ws.example.com/chat", "http://127.0.0.1:4510/local"]
)
def test_endpoints(endpoint: str) -> None:
    settings = Settings.from_environ({**REQUIRED, "GATECAST_CONNECTIONS_ENDPOINT": endpoint + "/"})
    assert settings.connections_endpoint == endpoint


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::1", "localhost", "a-b.example.com", "a." * 126 + "a"])  # noqa: S104
def test_hosts(host: str) -> None:
    assert Settings.from_environ({**REQUIRED, "GATECAST_HTTP_HOST": host}).http_host == host


@pytest.mark.parametrize(
    "name",
    ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_SQS", "AWS_ENDPOINT_URL_DYNAMODB", "AWS_ENDPOINT_URL_S3"],
)
def test_endpoints_of_the_sdk(name: str) -> None:
    for allowed in (
        "",
        "https://sqs.eu-west-1.amazonaws.com",
        "http://aws:4566/",
        "http://127.0.0.1:1",
        "http://[::1]",
    ):
        check_sdk_endpoints({name: allowed})
    for invalid in (
        "nonsense",
        "ftp://aws",
        "//aws",
        "https://",
        "http://aws:bad",
        "http://aws:65536",
        "http://my_aws:4566",
        "http://aws:4566\n",
        " http://aws",
        "http://[::",
        "https://aws?a=b",
    ):
        with pytest.raises(ConfigurationError, match=f"^{name} is "):
            check_sdk_endpoints({name: invalid})
