"""The emulator's TOML file: what it may say, and what each mistake in it gets."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from gatecast.emulator.authorizer import Authorizer
from gatecast.emulator.config import Config, ConfigurationError, read_config
from gatecast.emulator.faults import NAMED, THROTTLED, Delay, Rule
from gatecast.emulator.integration import Mock, Route
from gatecast.emulator.limits import Limits
from gatecast.emulator.remote import HttpProxy, LambdaFunction
from gatecast.emulator.sigv4 import Credentials

MOCK = '[routes]\nping = "mock"\n'


def read(tmp_path: Path, text: str, **kwargs: Any) -> Config:
    path = tmp_path / "emulator.toml"
    path.write_text(text)
    return read_config(path, **kwargs)


def test_everything_that_a_file_may_say(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        """
        host = "0.0.0.0"
        port = 0
        stage = "prod"
        base_path = ""
        region = "eu-west-1"
        selection_expression = "$request.body.type"
        invoke_endpoint = "http://127.0.0.1:3001/"
        allowed_origins = ["http://app.test:3000"]
        allowed_hosts = ["host.docker.internal"]
        seed = 7

        [routes]
        "$connect" = "lambda:Connect"
        hook = "http://127.0.0.1:5000/hook"

        [routes.send]
        integration = "lambda:http://127.0.0.1:9000/2015-03-31/functions/function/invocations"
        response = true

        [routes.ping]
        integration = "mock"
        response = true
        body = { type = "pong" }
        repeats = ["ref"]

        [routes.tell]
        integration = "https://127.0.0.1/tell"
        method = "PUT"
        parameters = { "integration.request.header.ConnectionId" = "context.connectionId" }

        [authorizer]
        integration = "lambda:Authorize"
        identity_sources = ["route.request.querystring.token"]

        [limits]
        idle_seconds = 5
        requests_per_second = 0
        latency_seconds = [0.01, 0.02]

        [credentials]
        access_key_id = "me"
        secret_access_key = "secret"

        [environment]
        TABLE = "chat"

        [[faults]]
        fault = "throttled"
        share = 0.5

        [[faults]]
        fault = { kind = "Delay", seconds = 1.5 }
        of = "connections"
        """,
    )
    at = "http://127.0.0.1:3001/2015-03-31/functions"
    assert dict(config.routes) == {
        "$connect": Route(LambdaFunction("Connect", f"{at}/Connect/invocations")),
        "hook": Route(HttpProxy("http://127.0.0.1:5000/hook")),
        "send": Route(
            LambdaFunction("function", "http://127.0.0.1:9000/2015-03-31/functions/function/invocations"), response=True
        ),
        "ping": Route(Mock({"type": "pong"}, ("ref",)), response=True),
        "tell": Route(
            HttpProxy(
                "https://127.0.0.1/tell", "PUT", {"integration.request.header.ConnectionId": "context.connectionId"}
            )
        ),
    }
    assert config.authorizer == Authorizer(
        LambdaFunction("Authorize", f"{at}/Authorize/invocations"), ("route.request.querystring.token",)
    )
    assert config.selection.key('{"type": "send"}') == "send"
    assert (config.host, config.port, config.stage, config.base_path) == ("0.0.0.0", 0, "prod", "")  # noqa: S104
    assert (config.region, config.seed, config.allowed_origins) == ("eu-west-1", 7, ["http://app.test:3000"])
    assert config.allowed_hosts == ["host.docker.internal"]
    assert config.limits == Limits(idle_seconds=5.0, requests_per_second=None, latency_seconds=(0.01, 0.02))
    assert config.credentials == Credentials("me", "secret")
    assert config.environment == {"TABLE": "chat"}
    assert config.faults == [Rule(fault=THROTTLED, share=0.5), Rule(fault=Delay(1.5), of="connections")]


def test_the_example_of_the_document_is_read(tmp_path: Path) -> None:
    document = (Path(__file__).parents[2] / "docs" / "emulator.md").read_text()
    blocks = re.findall(r"^```toml\n(.*?)^```", document, re.MULTILINE | re.DOTALL)
    (example,) = [block for block in blocks if "invoke_endpoint" in block]
    config = read(tmp_path, example)
    assert set(config.routes) == {"$connect", "$disconnect", "send", "ping", "report"}
    assert len(config.faults) == 1


def test_the_document_has_every_key(tmp_path: Path) -> None:
    document = (Path(__file__).parents[2] / "docs" / "emulator.md").read_text()
    section = document.partition("## Configuration")[2].partition("### Integrations")[0]
    with pytest.raises(ConfigurationError) as raised:
        read(tmp_path, f"unknown = 1\n{MOCK}")
    keys = str(raised.value).partition("there are ")[2].split(", ")
    missing = [key for key in keys if f"`{key}`" not in section and f"[{key}]" not in section]
    assert not missing
    assert not [field.name for field in dataclasses.fields(Limits) if f"`{field.name}`" not in section]
    assert not [name for name in NAMED if name not in section]


def test_by_default_it_is_safe_on_a_laptop(tmp_path: Path) -> None:
    config = read(tmp_path, MOCK)
    assert config.host == "127.0.0.1"
    assert "http://localhost:*" in config.allowed_origins
    assert read(tmp_path, f'allowed_origins = ["*"]\n{MOCK}').allowed_origins == ()


def test_a_file_adds_to_a_template_and_replaces_what_it_names(tmp_path: Path) -> None:
    template = Config(
        routes={"send": Route(Mock({})), "ping": Route(Mock({"old": 1}))},
        stage="prod",
        environment={"A": "1", "B": "1"},
    )
    config = read(tmp_path, '[routes]\nping = "mock"\n[environment]\nB = "2"\n', base=template)
    assert dict(config.routes) == {"send": Route(Mock({})), "ping": Route(Mock({}))}
    assert (config.stage, config.environment) == ("prod", {"A": "1", "B": "2"})


def test_the_option_takes_precedence_over_the_invoke_endpoint_of_the_file(tmp_path: Path) -> None:
    text = 'invoke_endpoint = "http://127.0.0.1:1"\n[routes]\nsend = "lambda:Send"\n'
    config = read(tmp_path, text, invoke_endpoint="http://127.0.0.1:2")
    function = config.routes["send"].integration
    assert isinstance(function, LambdaFunction)
    assert function.url.startswith("http://127.0.0.1:2/")


def test_handlers_are_imported_later_and_errors_say_where_they_are_configured(tmp_path: Path) -> None:
    config = read(tmp_path, '[routes.send]\nintegration = "python:no_such_module.send"\n')
    with pytest.raises(Exception, match=r"emulator\.toml: \[routes\.send\]: integration: .*no module no_such_module"):
        config.folders[0].load()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a b", r"it is not TOML: .*line 1"),
        ("", r"\[routes\]: there are no routes: expected, for example"),
        (f"colour = 1\n{MOCK}", r"colour: unknown; there are routes, authorizer"),
        (f"port = 'x'\n{MOCK}", r"port: Expected `int`, got `str`"),
        (f"port = 70000\n{MOCK}", r"port: 70000: expected 0 \(a free port\) to 65535"),
        (f"selection_expression = 'action'\n{MOCK}", r"selection_expression: 'action': expected an expression such as"),
        (
            f"allowed_hosts = ['a:1']\n{MOCK}",
            r"allowed_hosts: 'a:1': expected a host's name or address, without a port",
        ),
        (f"allowed_hosts = ['http://a']\n{MOCK}", r"allowed_hosts: 'http://a': expected a host's name"),
        (f"allowed_hosts = ['']\n{MOCK}", r"allowed_hosts: '': expected a host's name"),
        ("routes = 1", r"routes: Expected `object`, got `int`"),
        ("[routes]\nsend = 1", r"\[routes\]: send: 1: expected python:module\.function, lambda:NAME"),
        ("[routes]\nsend = 'pyton:a.b'", r"\[routes\]: send: 'pyton:a\.b': expected python:module\.function"),
        ("[routes]\nsend = 'python:'", r"\[routes\]: send: 'python:': expected python:module\.function"),
        ("[routes]\nsend = 'lambda:Send'", r"\[routes\]: send: 'lambda:Send' needs invoke_endpoint"),
        ("[routes]\nsend = 'lambda:http://x/y'", r"\[routes\]: send: .*ends in /2015-03-31/functions/NAME/invocations"),
        ("[routes.send]\nresponse = true", r"\[routes\.send\]: integration: missing"),
        ("[routes.send]\nintegration = 'mock'\nresponse = 1", r"\[routes\.send\]: response: Expected `bool`"),
        ("[routes.send]\nintegration = 'mock'\nreply = 1", r"\[routes\.send\]: reply: unknown; there are integration,"),
        (
            "[routes.send]\nintegration = 'mock'\nmethod = 'PUT'",
            r"\[routes\.send\]: method: it has no effect on 'mock'",
        ),
        ("[routes.send]\nintegration = 'http://x/'\nbody = {}", r"\[routes\.send\]: body: it has no effect on 'http"),
        (
            "[routes.send]\nintegration = 'http://x/'\nparameters = {ConnectionId = 'context.connectionId'}",
            r"\[routes\.send\.parameters\]: ConnectionId: expected integration\.request\.header\.NAME",
        ),
        (
            "[routes.send]\nintegration = 'http://x/'\nparameters = {'integration.request.header.a' = 'connectionId'}",
            r"\[routes\.send\.parameters\]: integration\.request\.header\.a: 'connectionId': expected context\.NAME",
        ),
        (
            "[routes.send]\nintegration = 'http://x/'\nparameters = {'integration.request.header.a' = 1}",
            r"\[routes\.send\.parameters\]: integration\.request\.header\.a: 1: expected text",
        ),
        (
            f"{MOCK}[authorizer]\nintegration = 'mock'",
            r"\[authorizer\]: integration: 'mock': expected python:.* or lam",
        ),
        (
            f"{MOCK}[authorizer]\nintegration = 'lambda:http://x/functions/a/invocations'\nidentity_sources = ['x']",
            r"\[authorizer\]: identity_sources: unknown identity source 'x': expected route\.request\.header\.NAME",
        ),
        (f"{MOCK}[limits]\nidle = 1", r"\[limits\]: idle: unknown; there are message_bytes"),
        (f"{MOCK}[limits]\nidle_seconds = '1'", r"\[limits\]: idle_seconds: Expected `float`, got `str`"),
        (f"{MOCK}[limits]\nsend_buffer_bytes = 1", r"\[limits\]: send_buffer_bytes must be at least 1024"),
        (f"{MOCK}[credentials]\naccess_key_id = 'a'", r"\[credentials\]: secret_access_key: missing"),
        (f"{MOCK}[environment]\nTABLE = 1", r"\[environment\]: TABLE: 1: expected text, in quotes"),
        (
            f"{MOCK}[[faults]]\nfault = 'slow'",
            r"\[faults, number 1\]: fault: 'slow': expected a table, or one of throttl",
        ),
        (f"{MOCK}[[faults]]\nshare = 0.5", r"\[faults, number 1\]: fault: missing"),
        (f"{MOCK}[[faults]]\nfault = {{kind = 'Delay'}}", r"\[faults, number 1, fault\]: seconds: missing"),
        (f"{MOCK}[[faults]]\nfault = 'gone'\nshare = 2.0", r"\[faults, number 1\]: share must be between 0 and 1"),
    ],
)
def test_a_mistake_is_reported_with_the_file_the_table_and_the_key(tmp_path: Path, text: str, error: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"emulator\.toml: {error}") as raised:
        read(tmp_path, text)
    assert "\n" not in str(raised.value)


def test_a_file_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nothing\.toml: it cannot be read: .*No such file"):
        read_config(tmp_path / "nothing.toml")
