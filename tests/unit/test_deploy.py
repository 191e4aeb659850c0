"""The deploy script: its parameters, its artifacts and its error messages."""

import base64
import json
import re
import tomllib
import zipfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deploy.ecs import __main__ as script
from deploy.ecs import artifacts
from deploy.ecs.parameters import check, read_parameters
from deploy.ecs.stacks import DeployError, Parameter, Stacks
from tests.templates import FOLDER, NAMES, Template


def known() -> dict[str, list[Parameter]]:
    return {
        name: [Parameter(key, each.get("Default")) for key, each in Template(name).parameters.items()] for name in NAMES
    }


def test_the_example_parameters_are_valid_and_exist_in_the_templates() -> None:
    path = FOLDER / "parameters.example.toml"
    check(read_parameters(path), known())
    commented = re.sub(r"^# (?=\w+ = )", "", path.read_text(), flags=re.MULTILINE)
    check({name: str(value) for name, value in tomllib.loads(commented).items()}, known())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MinTask = 3", "No template has a parameter MinTask; did you mean MinTasks?"),
        ('VpcId = "vpc-1"', "VpcId and SubnetIds belong together"),
        ('RouteRates = "500,300,100,500,100,500"', "RouteRates has 6 values: expected 10 whole numbers"),
        ('RouteRates = "1,2,3,4,5,6,7,8,9,x"', "expected 10 whole numbers"),
        ('EventPattern = "{"', "EventPattern is not valid JSON"),
        ("EventPattern = '[]'", "EventPattern must be an object with at least one field"),
        ("EventPattern = '{}'", "EventPattern must be an object with at least one field"),
        ("""EventPattern = '{"source": ["a"]}'""", "EventPattern needs a room"),
        ('EventRoom = "lobby"', "EventRoom is set without EventPattern"),
        ('EventRoomPath = "$.detail.room"', "EventRoomPath is set without EventPattern"),
        (
            """EventPattern = '{"source": ["a"]}'\nEventRoom = "lobby"\nQueue = "fifo\"""",
            "EventBridge reaches only a standard queue",
        ),
        (
            """EventPattern = '{"source": ["a"]}'\nEventRoomPath = "$.detail.user\"""",
            r"""Add this to EventPattern: {"detail": {"user": [{"anything-but": {"wildcard": ["*\"*", "*\\\\*"]}}]}}""",
        ),
        ('Senders = "arn:aws:sns:eu-west-1:123456789012:*"', "Senders has 'arn:aws:sns:eu-west-1:123456789012:*'"),
        ('HttpApi = "on"', "HttpApi is 'on': expected no or yes"),
        ("Spot = true", "Spot must be a string or an integer"),
        ("Spot = ", "is not valid TOML"),
        (None, "copy deploy/ecs/parameters.example.toml"),
    ],
)
def test_an_invalid_parameter_is_named_in_the_error(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "parameters.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DeployError, match=re.escape(message)):
        check(read_parameters(path), known())


ONLY_SAFE = {"anything-but": {"wildcard": ['*"*', "*\\\\*"]}}


@pytest.mark.parametrize(
    ("path", "pattern", "accepted"),
    [
        ("$.detail.user", {"detail": {"user": [ONLY_SAFE]}}, True),
        ("$.detail.order.user", {"detail": {"order": {"user": [ONLY_SAFE]}}}, True),
        ("$.detail.user", {"detail": {"user": ["ann", "bob"]}}, True),
        ("$.source", {"source": ["orders", ONLY_SAFE]}, True),
        ("$.detail.user", {"detail": {"user": [{"anything-but": {"wildcard": ["admin*", "*\\\\*", '*"*']}}]}}, True),
        ("$.detail.user", {"source": ["orders"]}, False),
        ("$.detail.user", {"detail": {"order": [ONLY_SAFE]}}, False),
        ("$.detail.user", {"detail": {"user": {"name": [ONLY_SAFE]}}}, False),
        ("$.detail.user.name", {"detail": {"user": [ONLY_SAFE]}}, False),
        ("$.detail.user", {"$or": [{"detail": {"user": [ONLY_SAFE]}}, {"source": ["a"]}]}, False),
        ("$.detail.user", {"detail": {"user": [ONLY_SAFE, {"prefix": "a"}]}}, False),
        ("$.detail.user", {"detail": {"user": [{"anything-but": {"wildcard": ['*"*']}}]}}, False),
        ("$.detail.user", {"detail": {"user": [{"anything-but": {"wildcard": '*"*'}}]}}, False),
        ("$.detail.user", {"detail": {"user": [{"anything-but": {"wildcard": ['*"*', "*\\*"]}}]}}, False),
        ("$.detail.user", {"detail": {"user": [{"exists": True}]}}, False),
        ("$.detail.user", {"detail": {"user": [{**ONLY_SAFE, "exists": True}]}}, False),
        ("$.detail.user", {"detail": {"user": ['a"b']}}, False),
        ("$.detail.user", {"detail": {"user": ["a\\b"]}}, False),
        ("$.detail.user", {"detail": {"user": []}}, False),
    ],
)
def test_a_value_that_chooses_the_room_must_not_contain_quotes_or_backslashes(
    path: str, pattern: dict[str, Any], *, accepted: bool
) -> None:
    values = {"EventPattern": json.dumps(pattern), "EventRoomPath": path}
    with nullcontext() if accepted else pytest.raises(DeployError, match="Add this to EventPattern"):
        check(values, known())


SENDERS = {
    "arn:aws:sns:eu-west-1:123456789012:prices": True,
    "arn:aws-cn:events:cn-north-1:123456789012:rule/bus/prices-events": True,
    "arn:aws:sns:*:123456789012:prices": False,
    "arn:*:sns:eu-west-1:123456789012:prices": False,
    "arn:aws:sns:eu-west-1:123456789012:price?": False,
    "arn:aws:s3:::bucket": False,
    "prices": False,
    "*": False,
}


@pytest.mark.parametrize(("sender", "accepted"), SENDERS.items())
def test_only_single_topics_and_rules_may_send(sender: str, *, accepted: bool) -> None:
    first = next(iter(SENDERS))
    with nullcontext() if accepted else pytest.raises(DeployError, match=re.escape(f"Senders has {sender!r}")):
        check({"Senders": f"{first}, {sender}"}, known())
    assert bool(re.fullmatch(Template("data").parameters["Senders"]["AllowedPattern"], sender)) is accepted


def test_the_same_contents_make_the_same_zip(tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    (packages / "dependency" / "__pycache__").mkdir(parents=True)
    (packages / "dependency" / "__init__.py").write_text("x = 1\n")
    (packages / "dependency" / "__pycache__" / "__init__.pyc").write_bytes(b"never")
    for name in ("one.zip", "two.zip"):
        artifacts.write_zip(tmp_path / name, packages)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    names = zipfile.ZipFile(tmp_path / "one.zip").namelist()
    assert {"routes/handlers.py", "routes/authorizer.py", "gatecast/table.py", "dependency/__init__.py"} <= set(names)
    assert not [name for name in names if "__pycache__" in name or name.startswith(("worker", "local", "tests"))]


def test_an_artifact_key_is_a_digest_of_its_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert artifacts.routes_key("arm64") != artifacts.routes_key("x86_64")
    monkeypatch.setattr(artifacts, "CHECKOUT", tmp_path)
    (tmp_path / "routes").mkdir()
    (tmp_path / "routes" / "a.py").write_text("1")
    first = artifacts.digest(["routes"])
    assert artifacts.digest(["routes"]) == first
    (tmp_path / "routes" / "a.py").rename(tmp_path / "routes" / "b.py")
    assert artifacts.digest(["routes"]) != first


# The worker's image


class Registry:
    """A fake ECR; its images are the ones that `docker push` was called with."""

    def __init__(self, pushed: Path) -> None:
        self._pushed = pushed
        self.exceptions = SimpleNamespace(ImageNotFoundException=KeyError)

    def describe_images(self, *, repositoryName: str, imageIds: list[dict[str, str]]) -> dict[str, Any]:  # noqa: N803
        assert repositoryName == "gatecast"
        if f":{imageIds[0]['imageTag']}\n" not in self._pushed.read_text():
            raise KeyError
        return {"imageDetails": [{"imageDigest": "sha256:abc"}]}

    def get_authorization_token(self) -> dict[str, Any]:
        token = base64.b64encode(b"AWS:the password").decode()
        return {"authorizationData": [{"authorizationToken": token}]}


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `docker` that only records its arguments and input. Returns the file they are written to."""
    calls, program = tmp_path / "calls", tmp_path / "docker"
    calls.touch()
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {calls}\n[ "$1" = login ] && cat >> {calls} && echo >> {calls}\nexit "${{FAIL:-0}}"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return calls


def push(calls: Path) -> str:
    uri = "000000000000.dkr.ecr.eu-west-1.amazonaws.com/gatecast"
    return artifacts.push_image(Registry(calls), "gatecast", uri, "arm64", say=lambda _: None)


def test_the_image_is_built_and_pushed_once(docker: Path) -> None:
    assert push(docker) == "000000000000.dkr.ecr.eu-west-1.amazonaws.com/gatecast@sha256:abc"
    build, login, password, pushed = docker.read_text().splitlines()
    assert build.startswith("build --target worker --platform linux/arm64 --tag ")
    assert login == "login --username AWS --password-stdin 000000000000.dkr.ecr.eu-west-1.amazonaws.com"
    assert password == "the password"
    assert re.fullmatch(r"push --quiet \S+/gatecast:worker-[0-9a-f]{16}-arm64", pushed)
    push(docker)
    assert len(docker.read_text().splitlines()) == 4


def test_an_image_that_cannot_be_built_is_explained(docker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL", "1")
    with pytest.raises(DeployError, match="set Architecture to this machine's"):
        push(docker)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DeployError, match=r"no docker on this machine(?s:.*)docker build --target worker"):
        push(docker)


# Error messages


def test_a_parameter_without_a_value_is_named() -> None:
    class CloudFormation:
        def get_template_summary(self, **_: str) -> dict[str, Any]:
            return {"Parameters": [{"ParameterKey": "Name", "DefaultValue": "x"}, {"ParameterKey": "TableArn"}]}

    with pytest.raises(DeployError, match="worker: the parameter TableArn is missing"):
        Stacks(CloudFormation(), "x", say=lambda _: None).deploy("worker", {})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ('Region = "eu-west-1"', "No AWS credentials: sign in"),
        ("", "No Region: set Region"),
        (None, "does not exist"),
    ],
)
def test_a_deployment_that_cannot_start_prints_the_reason(
    parameters: str | None,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "parameters.toml"
    if parameters is not None:
        path.write_text(parameters)
    assert script.main(["deploy", str(path)]) == 1
    assert message in capsys.readouterr().err


def test_nothing_is_destroyed_before_the_name_is_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    session = SimpleNamespace(client=lambda _name: None, region_name="eu-west-1")
    monkeypatch.setattr("builtins.input", lambda _prompt: "gatecasts")
    with pytest.raises(DeployError, match="Nothing was removed"):
        script.destroy(session, {"Name": "gatecast"}, confirmed=False)


def called_services(*folders: str) -> set[str]:
    """The services of which the code in these folders makes clients."""
    sources = [path.read_text() for folder in folders for path in (artifacts.CHECKOUT / folder).rglob("*.py")]
    return {name for text in sources for name in re.findall(r"""client\(\s*"([a-z0-9]+)\"""", text)}


def test_the_zip_file_has_the_model_of_each_service_that_the_routes_call() -> None:
    called = called_services("routes")
    assert "s3" in called
    assert called <= set(artifacts._SERVICES)


@pytest.mark.parametrize(
    ("lock", "folders"), [("worker", ["worker"]), ("lambda", ["routes"]), ("local", ["routes", "local"])]
)
def test_each_image_has_the_model_of_each_service_that_its_code_calls(lock: str, folders: list[str]) -> None:
    dockerfile = (artifacts.CHECKOUT / "Dockerfile").read_text()
    (models,) = re.findall(rf'^RUN sh install.sh "?{lock}(?: \$EXTRA")? (.*)$', dockerfile, re.MULTILINE)
    called = called_services(*folders)
    assert "s3" in called
    assert called <= set(models.split())
