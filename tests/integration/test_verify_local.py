"""`python -m deploy.verify --target local` as a reader runs it, and its stack on ministack's CloudFormation."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from deploy.verify import deployment as module
from deploy.verify.deployment import FOLDER, TEMPLATE, Deployment, left_behind, new_name
from deploy.verify.documented import DOCUMENTED
from deploy.verify.local_target import NOT_ASKED, SERVICES
from deploy.verify.questions import QUESTIONS
from local.ministack import Ministack
from tests.templates import _Loader

CHECKOUT = Path(__file__).parents[2]
NOT_IN_MINISTACK = {"AWS::ApiGatewayV2::IntegrationResponse", "AWS::ApiGatewayV2::RouteResponse"}
READERS_OWN = {
    "AWS_PROFILE": "production",
    "AWS_ACCESS_KEY_ID": "AKIAREADERSOWNKEY000",
    "AWS_SECRET_ACCESS_KEY": "readers-own-secret",
    "AWS_SESSION_TOKEN": "readers-own-token",
    "AWS_REGION": "ap-southeast-2",
    "AWS_ENDPOINT_URL_SQS": "http://127.0.0.1:9",
}


@contextmanager
def verify(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """The running command, in the environment of a reader who is signed in to AWS."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    with subprocess.Popen(
        [sys.executable, "-m", "deploy.verify", "--target", "local", *arguments],
        cwd=CHECKOUT,
        env={**environment, **READERS_OWN},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def output() -> tuple[int | None, str, str]:
    """Exit code, report and progress of one run with all questions."""
    with verify() as process:
        report, progress = process.communicate(timeout=100)
    return process.returncode, report, progress


def test_every_question_is_asked_of_this_machine_and_reported(output: tuple[int | None, str, str]) -> None:
    code, report, progress = output
    assert code == 0, progress
    rows = dict(re.findall(r"^\| \[(\S+)\]\(#\S+\) \| (.+?) \|", report, re.MULTILINE))
    assert rows == {each.name: "not asked" if each.name in NOT_ASKED else "fits" for each in QUESTIONS}
    found = re.findall(r"^\| ([a-z-]+): .+? \| ([a-z* ]+) \|", report, re.MULTILINE)
    assert found == [(each.name, "fits") for each in DOCUMENTED]
    assert f"Documented behaviour: {len(DOCUMENTED)} of {len(DOCUMENTED)} as documented." in report
    assert "Nothing is left over" in report
    assert (CHECKOUT / ".local" / "verify-local.md").exists()


def test_nothing_of_the_readers_configuration_is_used(output: tuple[int | None, str, str]) -> None:
    _, report, progress = output
    assert "Region us-east-1" in report
    assert not [value for value in READERS_OWN.values() if value in report + progress]


def test_the_report_says_how_far_ministack_went(output: tuple[int | None, str, str]) -> None:
    """If it makes the whole template by now, correct docs/first-account.md."""
    _, report, _ = output
    assert "ministack does not make the template" in report
    assert "Unrecognized resource types" in report


@pytest.mark.parametrize(
    ("name", "reading"),
    [
        ("ids", "Unknown and gone ids get 410, malformed ones 400 or 410"),
        ("post-sizes", "Delivered whole: 32,768, 32,769, 65,536, 131,072 bytes; larger ones get 413"),
        ("post-in-connect", "A post during $connect gets 410, one after it 200"),
        ("delete", "The client sees close code 1000; $disconnect follows"),
        ("quiet", "The client gets no message if the function returns no body or an empty body"),
        ("url-length", "Accepted up to 4,096 characters; longer ones get 414"),
        ("idle", "Posts to it reset the timer; client pings do not reset the timer"),
        ("compression", "Messages are not compressed"),
    ],
)
def test_the_emulator_is_as_the_document_says(name: str, reading: str, output: tuple[int | None, str, str]) -> None:
    """The readings behind the column of the emulator in docs/first-account.md."""
    _, report, _ = output
    assert f"| [{name}](#{name}) | fits | {reading} |" in report


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_reports_what_it_has_seen_and_leaves_nothing(number: signal.Signals) -> None:
    with verify("--only", "ids", "idle") as process:
        assert process.stderr
        for line in process.stderr:
            if line == "ids: fits\n":
                break
        process.send_signal(number)
        report, progress = process.communicate(timeout=60)
    assert process.returncode == 1, progress
    assert "**The run ended early:** interrupted." in report
    assert "| [ids](#ids) | fits |" in report
    assert "| [idle](#idle) | not asked | The run ended before it was asked |" in report
    assert "Nothing is left over" in report


# The stack


@pytest.fixture(scope="module")
def ministack() -> Iterator[Ministack]:
    with Ministack.start(services=SERVICES) as running:
        yield running


@pytest.fixture
def session(ministack: Ministack, aws: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A session, and the template without the kinds of resources that ministack does not have."""
    source = yaml.load((FOLDER / f"{TEMPLATE}.yaml").read_text(), Loader=_Loader)  # noqa: S506 - a SafeLoader with tags
    kept = {name: each for name, each in source["Resources"].items() if each["Type"] not in NOT_IN_MINISTACK}
    for each in kept.values():
        if "DependsOn" in each:
            each["DependsOn"] = [name for name in each["DependsOn"] if name in kept]
    (tmp_path / f"{TEMPLATE}.yaml").write_text(yaml.safe_dump({**source, "Resources": kept}))
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", ministack.url)
    return boto3.session.Session(region_name=aws["AWS_REGION"])


def test_the_stack_is_made_found_and_removed_with_everything_in_it(session: Any) -> None:
    cloudformation = session.client("cloudformation")
    deployment = Deployment(session, new_name(), say=lambda _: None, poll_seconds=0.05)
    outputs = deployment.deploy()
    assert outputs["Host"].endswith(".execute-api.us-east-1.amazonaws.com")
    assert outputs["QueueUrl"].startswith("http")
    assert left_behind(cloudformation) == [deployment.name]
    assert deployment.destroy() is None
    assert left_behind(cloudformation) == []
    assert deployment.destroy() is None, "idempotent"
    assert not session.client("sqs").list_queues().get("QueueUrls")
    assert not session.client("lambda").list_functions()["Functions"]
    assert not session.client("apigatewayv2").get_apis()["Items"]
    assert not session.client("iam").list_roles()["Roles"]
    assert not session.client("logs").describe_log_groups()["logGroups"]
