"""Every environment variable: if it is missing, empty, out of range or of the wrong type, the error names it."""

import dataclasses
import re
from pathlib import Path
from typing import get_args

import pytest

from gatecast.variables import OTHERS, WORKER, unknown_variables
from worker.settings import (
    ConfigurationError,
    LogFormat,
    LogLevel,
    Settings,
    SlowClients,
    check_regions,
    check_sdk_endpoints,
    insecure_endpoints,
)

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
        ("GATECAST_LOG_LEVEL", "trace"),
        ("GATECAST_LOG_LEVEL", " info"),
        ("GATECAST_LOG_FORMAT", "text"),
        ("GATECAST_SLOW_CLIENTS", ""),
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
        ("GATECAST_CONNECTIONS_ENDPOINT", "https://ws.example.com/a%24b"),
        ("GATECAST_CONNECTIONS_ENDPOINT", "https://ws.example.com/a b"),
        ("GATECAST_CONNECTIONS_ENDPOINT", "https://ws.example.com/a;b"),
        ("GATECAST_CONNECTIONS_ENDPOINT", "https://ws.example.com/a//b"),
        ("GATECAST_CONNECTIONS_ENDPOINT", "https://ws.example.com/./a"),
        ("GATECAST_CONNECTIONS_ENDPOINT", "https://ws.example.com/a/.."),
        ("GATECAST_CONNECTIONS_ENDPOINT", "ws.example.com"),
    ],
)
def test_invalid_values(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name} is "):
        Settings.from_environ({**REQUIRED, name: value})


@pytest.mark.parametrize(
    ("name", "values"),
    [("LOG_LEVEL", get_args(LogLevel)), ("LOG_FORMAT", get_args(LogFormat)), ("SLOW_CLIENTS", get_args(SlowClients))],
)
def test_enumerations_are_accepted_in_upper_and_lower_case(name: str, values: tuple[str, ...]) -> None:
    for value in values:
        for written in (value, value.upper(), value.title()):
            settings = Settings.from_environ({**REQUIRED, f"GATECAST_{name}": written})
            assert getattr(settings, name.lower()) == value


def test_these_are_all_enumerations() -> None:
    enumerations = {field.name for field in dataclasses.fields(Settings) if "one of" in field.metadata["kind"].expected}
    assert enumerations == {"log_level", "log_format", "slow_clients"}


def test_the_error_for_slow_clients_lists_the_allowed_values() -> None:
    with pytest.raises(ConfigurationError, match=r"^GATECAST_SLOW_CLIENTS is 'drop': expected one of close, keep$"):
        Settings.from_environ({**REQUIRED, "GATECAST_SLOW_CLIENTS": "drop"})


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://ws.example.com",
        "https://ws.example.com/chat",
        "https://ws.example.com/$chat+v1/it's!*(new)",
        "https://ws.example.com/..a/.well-known",
        "http://127.0.0.1:4510/local",
        "http://gateway:8080/local",
        "HTTP://[::1]:4510/local",
    ],
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


@pytest.mark.parametrize("host", ["ws.example.com", "8.8.8.8", "134744072", "abc.execute-api.eu-west-1.amazonaws.com"])
def test_the_session_token_is_not_sent_in_clear_text_to_a_public_address(host: str) -> None:
    message = "^GATECAST_CONNECTIONS_ENDPOINT is 'http://.*session token in clear text.*expected https://$"
    with pytest.raises(ConfigurationError, match=message):
        Settings.from_environ({**REQUIRED, "GATECAST_CONNECTIONS_ENDPOINT": f"http://{host}/live"})


def test_endpoints_of_the_sdk_in_clear_text_are_named() -> None:
    environ = {
        "AWS_ENDPOINT_URL": "http://aws:4566",
        "AWS_ENDPOINT_URL_DYNAMODB": "https://dynamodb.eu-west-1.amazonaws.com",
        "AWS_ENDPOINT_URL_SQS": "HTTP://sqs.example.com",
        "AWS_ENDPOINT_URL_STS": "http://sts.example.com",
        "OTHER": "http://example.com",
    }
    assert insecure_endpoints(environ) == ["AWS_ENDPOINT_URL_SQS", "AWS_ENDPOINT_URL_STS"]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("GATECAST_MAX_IN_FLIHGT", "GATECAST_MAX_IN_FLIGHT"),
        ("GATECAST_LOGLEVEL", "GATECAST_LOG_LEVEL"),
        ("GATECAST_ENDPOINT", "GATECAST_CONNECTIONS_ENDPOINT"),
        ("GATECAST_PORT", "GATECAST_HTTP_PORT"),
        ("gatecast_table", "GATECAST_TABLE"),
        ("GATECASTTABLE", "GATECAST_TABLE"),
        ("GATECAST_XYZ", None),
    ],
)
def test_unknown_variables_are_named_with_the_nearest_setting(name: str, nearest: str | None) -> None:
    assert unknown_variables({**REQUIRED, "PATH": "/bin", name: "1"}) == {name: nearest}


def test_a_missing_variable_is_reported_with_its_misspelling() -> None:
    environ = {**REQUIRED, "GATECAST_TABEL": "secret"}
    del environ["GATECAST_TABLE"]
    with pytest.raises(ConfigurationError, match=r"^GATECAST_TABLE is missing: .* \(GATECAST_TABEL is set\)$"):
        Settings.from_environ(environ)


def test_variables_of_other_parts_are_known() -> None:
    """Exactly those that the repository contains outside of the worker, except for examples in tests."""
    checkout = REFERENCE.parents[1]
    folders = ("gatecast", "routes", "local", "deploy", "bench", "tests")
    files = [path for folder in folders for path in (checkout / folder).rglob("*") if path.suffix in (".py", ".sh")]
    files.remove(checkout / "gatecast/variables.py")
    files += [checkout / name for name in ("Makefile", "Dockerfile", "docker-compose.yml")]
    examples = {
        Path(__file__), *(checkout / "tests" / name for name in (
            "unit/test_cli_doctor.py", "unit/test_docs.py", "e2e/test_worker_environment.py",
        ))
    }  # fmt: skip
    texts = [path.read_text() for path in files if path not in examples]
    found = {name for text in texts for name in re.findall(r"\bGATECAST_[A-Z0-9]+(?:_[A-Z0-9]+)*\b(?!_)", text)}
    settings = {f"GATECAST_{field.name.upper()}" for field in dataclasses.fields(Settings)}
    assert settings == WORKER
    assert found - settings == OTHERS, "list it in gatecast/variables.py"
    assert unknown_variables(dict.fromkeys(found, "")) == {}


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("GATECAST_QUEUE_URL", "https://sqs.us-east-1.amazonaws.com/123456789012/q"),
        ("GATECAST_DEAD_LETTER_QUEUE_URL", "https://us-east-1.queue.amazonaws.com/123456789012/q"),
        ("GATECAST_CONNECTIONS_ENDPOINT", "https://abc.execute-api.us-east-1.amazonaws.com/live"),
        ("AWS_ENDPOINT_URL_DYNAMODB", "https://vpce-0a-1b.dynamodb.us-east-1.vpce.amazonaws.com"),
    ],
)
def test_a_url_in_another_region_is_reported(name: str, url: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{name} is .* in the Region us-east-1, .* is eu-west-1: expected "):
        check_regions({**REQUIRED, name: url}, "eu-west-1")
    check_regions({name: url}, "us-east-1")


@pytest.mark.parametrize(
    "url",
    [
        "https://sqs.eu-west-1.amazonaws.com/123456789012/broadcasts",
        "https://sqs.eu-west-1.amazonaws.com/123456789012/broadcasts/",
        "https://eu-west-1.queue.amazonaws.com/123456789012/broadcasts",
        "http://127.0.0.1:4566/123456789012/broadcasts",
    ],
)
def test_the_queue_cannot_be_its_own_dead_letter_queue(url: str) -> None:
    expected = "^GATECAST_DEAD_LETTER_QUEUE_URL is .*, the same queue as GATECAST_QUEUE_URL: expected another one"
    with pytest.raises(ConfigurationError, match=expected):
        Settings.from_environ({**REQUIRED, "GATECAST_DEAD_LETTER_QUEUE_URL": url})
    Settings.from_environ({**REQUIRED, "GATECAST_DEAD_LETTER_QUEUE_URL": f"{url.rstrip('/')}-dead-letter"})


def test_receipts_need_a_queue_of_their_own() -> None:
    url = REQUIRED["GATECAST_QUEUE_URL"]
    others = {"GATECAST_QUEUE_URL": url, "GATECAST_DEAD_LETTER_QUEUE_URL": f"{url}-dead"}
    for name, other in others.items():
        expected = f"^GATECAST_RECEIPTS_QUEUE_URL is .*, the same queue as {name}: expected another one"
        with pytest.raises(ConfigurationError, match=expected):
            Settings.from_environ({**REQUIRED, **others, "GATECAST_RECEIPTS_QUEUE_URL": f"{other}/"})
    settings = Settings.from_environ({**REQUIRED, **others, "GATECAST_RECEIPTS_QUEUE_URL": f"{url}-receipts"})
    assert settings.receipts_queue_url == f"{url}-receipts"
    with pytest.raises(ConfigurationError, match=r"^GATECAST_RECEIPTS_QUEUE_URL is 'receipts': expected the URL"):
        Settings.from_environ({**REQUIRED, "GATECAST_RECEIPTS_QUEUE_URL": "receipts"})


def test_an_error_never_shows_the_password_in_a_url() -> None:
    for name in ("GATECAST_CONNECTIONS_ENDPOINT", "GATECAST_QUEUE_URL"):
        with pytest.raises(ConfigurationError) as raised:
            Settings.from_environ({**REQUIRED, name: "https://me:hidden@/?x"})
        assert "hidden" not in str(raised.value)
    with pytest.raises(ConfigurationError) as raised:
        check_sdk_endpoints({"AWS_ENDPOINT_URL": "https://me:hidden@example.com"})
    assert "hidden" not in str(raised.value)
