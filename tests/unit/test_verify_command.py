"""The command `python -m deploy.verify` on AWS: confirmation, removal in every case, and what it says if that fails."""

import io
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, NoCredentialsError

from deploy.ecs.stacks import DeployError
from deploy.verify import __main__ as script
from deploy.verify.asking import Seen
from deploy.verify.observation import Observation, Verdict
from deploy.verify.questions import QUESTIONS

NAME = "gatecast-verify-0a1b2c3d"
ACCOUNT = "210987654321"


def rejected(code: str, message: str) -> ClientError:
    response: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": 400}}
    return ClientError(response, "Operation")


class CloudFormation:
    """Stacks by name. `on_create` and `on_delete` are called first, and may raise."""

    def __init__(self) -> None:
        self.stacks: dict[str, dict[str, Any]] = {}
        self.created: list[str] = []
        self.deleted: list[str] = []
        self.on_create: Callable[[], None] = lambda: None
        self.on_delete: Callable[[], None] = lambda: None

    def add(self, stack: str, tag: str, status: str = "CREATE_COMPLETE") -> None:
        outputs = {"Host": "a1b2c3d4e5.execute-api.eu-west-1.amazonaws.com", "AuthorizedHost": "b", "QueueUrl": "q"}
        self.stacks[stack] = {
            "StackName": stack,
            "StackStatus": status,
            "Tags": [{"Key": "gatecast", "Value": tag}],
            "Outputs": [{"OutputKey": key, "OutputValue": value} for key, value in outputs.items()],
        }

    def get_template_summary(self, **_: Any) -> Mapping[str, Any]:
        return {"Parameters": []}

    def create_stack(self, **arguments: Any) -> None:
        stack = arguments["StackName"]
        self.created.append(stack)
        self.add(stack, arguments["Tags"][0]["Value"])
        self.on_create()

    def delete_stack(self, StackName: str) -> None:  # noqa: N803
        self.on_delete()
        self.deleted.append(StackName)
        self.stacks.pop(StackName, None)

    def describe_stacks(self, StackName: str) -> Mapping[str, Any]:  # noqa: N803
        if StackName not in self.stacks:
            raise rejected("ValidationError", f"Stack with id {StackName} does not exist")
        return {"Stacks": [self.stacks[StackName]]}

    def describe_stack_events(self, **_: Any) -> Mapping[str, Any]:
        return {"StackEvents": []}

    def get_paginator(self, name: str) -> Any:
        assert name == "describe_stacks"

        class Paginator:
            def paginate(paginator) -> Iterator[Mapping[str, Any]]:  # noqa: N805
                yield {"Stacks": list(self.stacks.values())}

        return Paginator()


class Session:
    region_name = "eu-west-1"

    def __init__(self) -> None:
        self.cloudformation = CloudFormation()
        self.signed_in = True

    def client(self, service: str) -> Any:
        return {"cloudformation": self.cloudformation, "sts": self, "sqs": None}[service]

    def get_credentials(self) -> None: ...

    def get_caller_identity(self) -> Mapping[str, str]:
        if not self.signed_in:
            raise NoCredentialsError
        return {"Account": ACCOUNT, "Arn": f"arn:aws:iam::{ACCOUNT}:user/alice", "UserId": "AIDAEXAMPLE"}


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Session:
    """What the command uses: a fake account, one name, and a place for the report."""
    made = Session()
    monkeypatch.setattr(script, "_session", lambda _: made)
    monkeypatch.setattr(script, "new_name", lambda: NAME)
    monkeypatch.setattr(script, "OUTPUT", tmp_path)
    monkeypatch.setattr("time.sleep", lambda _: None)
    asks(monkeypatch, lambda: None)
    return made


def asks(monkeypatch: pytest.MonkeyPatch, then: Callable[[], None]) -> None:
    """The first question is asked; then this happens."""

    async def ask(target: Any, questions: Any, seen: Seen, **_: Any) -> None:
        assert target.main.url.startswith("wss://a1b2c3d4e5.")
        seen[questions[0].name] = Observation(Verdict.FITS, "As assumed")
        then()

    monkeypatch.setattr(script, "ask", ask)


def raises(error: BaseException) -> Callable[[], None]:
    def throw() -> None:
        raise error

    return throw


def verify(*arguments: str) -> int:
    return script.main(["--target", "aws", *arguments])


def test_the_stack_is_removed_and_the_report_is_masked(
    session: Session, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert verify("--yes") == 0
    assert session.cloudformation.created == session.cloudformation.deleted == [f"{NAME}-probe"]
    output, progress = capsys.readouterr()
    assert output == (tmp_path / "verify-aws.md").read_text()
    assert f"the stack {NAME}-probe" in output
    assert "Nothing is left over" in output
    assert ACCOUNT not in output
    assert f"Account {ACCOUNT}, Region eu-west-1, as alice" in progress, "for the person who has to confirm"
    assert "less than 0.01 USD" in progress
    assert f"DESTROY={NAME}" in progress, "for the case that the run is killed"


@pytest.mark.parametrize("typed", ["", "\n", "yes\n", "gatecast\n"])
def test_nothing_is_made_without_confirmation(
    typed: str, session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    assert verify() == 1
    assert not session.cloudformation.created
    assert "Nothing was deployed" in capsys.readouterr().err


def test_the_name_confirms(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{NAME}\n"))
    assert verify() == 0
    assert session.cloudformation.created


def test_without_credentials_nothing_happens(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    session.signed_in = False
    assert verify("--yes") == 1
    assert "No AWS credentials" in capsys.readouterr().err
    assert not session.cloudformation.created


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DeployError("The API does not work")])
def test_the_stack_is_removed_when_the_questions_end_early(
    error: BaseException, session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asks(monkeypatch, raises(error))
    assert verify("--yes") == 1
    assert session.cloudformation.deleted == [f"{NAME}-probe"]
    output = capsys.readouterr().out
    assert f"**The run ended early:** {str(error) or 'interrupted'}." in output
    assert "As assumed" in output, "what was seen before"


def test_the_stack_is_removed_even_if_the_script_is_wrong(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    asks(monkeypatch, raises(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        verify("--yes")
    assert session.cloudformation.deleted == [f"{NAME}-probe"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), rejected("AccessDenied", "no")])
def test_the_stack_is_removed_when_its_creation_ends_early(
    error: BaseException, session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    session.cloudformation.on_create = raises(error)
    assert verify("--yes") == 1
    assert session.cloudformation.deleted == [f"{NAME}-probe"]
    assert "ended early" in capsys.readouterr().out


@pytest.mark.parametrize("error", [KeyboardInterrupt(), rejected("AccessDenied", "no deletion here")])
def test_what_is_left_over_is_reported_with_the_command_that_removes_it(
    error: BaseException, session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    session.cloudformation.on_delete = raises(error)
    assert verify("--yes") == 1
    output, progress = capsys.readouterr()
    command = f"make verify-aws TARGET=aws REGION=eu-west-1 DESTROY={NAME}"
    assert re.search(rf"Left over:.* the stack {NAME}-probe, .*{command}", output)
    assert re.search(rf"Left over: the stack {NAME}-probe, .*{command}", progress)


def test_a_closed_terminal_does_not_keep_the_stack(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError("Input/output error")

    monkeypatch.setattr("sys.stderr", Closed())
    assert verify("--yes") == 0
    assert session.cloudformation.deleted == [f"{NAME}-probe"]


def test_only_stacks_of_this_script_are_listed(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    stacks = session.cloudformation
    stacks.add(f"{NAME}-probe", NAME)
    stacks.add("gatecast-verify-ffffffff-probe", "gatecast-verify-ffffffff", "DELETE_FAILED")
    stacks.add("gatecast-verify-11111111-probe", "somebody else's")
    stacks.add("gatecast-verify-22222222-probe", "gatecast-verify-22222222", "DELETE_COMPLETE")
    stacks.add("gatecast-data", "gatecast")
    assert verify("--list") == 0
    assert capsys.readouterr().out.split() == [NAME, "gatecast-verify-ffffffff"]


def test_what_a_killed_run_left_is_removed(session: Session) -> None:
    session.cloudformation.add(f"{NAME}-probe", NAME)
    assert verify("--destroy-only", NAME) == 0
    assert session.cloudformation.deleted == [f"{NAME}-probe"]


@pytest.mark.parametrize("name", ["gatecast", "gatecast-data", "gatecast-verify-ffffffff", ""])
def test_no_other_stack_can_be_removed(name: str, session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    session.cloudformation.add(f"{NAME}-probe", NAME)
    session.cloudformation.add(f"{name}-probe", "gatecast")
    assert verify(f"--destroy-only={name}", "--yes") == 1
    assert not session.cloudformation.deleted
    assert not session.cloudformation.created
    assert f"No run {name!r} has left a stack in eu-west-1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: --target"),
        (["--target", ""], "invalid choice: ''"),
        (["--target", "aws", "--only", "nothing"], "invalid choice: 'nothing'"),
        (["--target", "local", "--yes"], "are for --target aws"),
        (["--target", "local", "--destroy-only", NAME], "are for --target aws"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        script.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_only_asks_in_the_order_of_the_questions(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify("--yes", "--only", "delete", "ids") == 0
    assert session.cloudformation.created
    headings = re.findall(r"^## (\S+)$", capsys.readouterr().out, re.MULTILINE)
    assert headings == [each.name for each in QUESTIONS if each.name in {"delete", "ids"}]
