"""The template, the questions and the document of `deploy.verify` agree with each other and with the code."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from deploy.verify import aws, local_target
from deploy.verify.deployment import FOLDER, TEMPLATE
from deploy.verify.function import handler
from deploy.verify.masking import Masker
from deploy.verify.questions import BY_NAME, QUESTIONS
from tests.templates import Template, _Loader

CHECKOUT = Path(__file__).parents[2]
TEXT = (FOLDER / f"{TEMPLATE}.yaml").read_text()
SOURCE: dict[str, Any] = yaml.load(TEXT, Loader=_Loader)  # noqa: S506 - a SafeLoader with tags
RESOURCES: dict[str, dict[str, Any]] = SOURCE["Resources"]
MAX_INLINE_CHARACTERS = 4_096


def of_type(kind: str) -> dict[str, dict[str, Any]]:
    return {name: each["Properties"] for name, each in RESOURCES.items() if each["Type"] == kind}


def test_the_template_has_the_function_that_runs_on_this_machine() -> None:
    (function,) = of_type("AWS::Lambda::Function").values()
    assert function["Code"]["ZipFile"] == (FOLDER / "function.py").read_text()
    assert len(function["Code"]["ZipFile"]) <= MAX_INLINE_CHARACTERS
    assert function["Handler"] == f"index.{handler.__name__}"
    assert set(function["Environment"]["Variables"]) == {"QUEUE_URL"}


def test_the_function_may_do_nothing_but_log_and_report() -> None:
    (role,) = of_type("AWS::IAM::Role").values()
    (policy,) = role["Policies"]
    allowed = {
        (action, statement["Resource"]["Fn::GetAtt"])
        for statement in policy["PolicyDocument"]["Statement"]
        for action in ([statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"])
    }
    assert allowed == {
        ("logs:CreateLogStream", "Logs.Arn"),
        ("logs:PutLogEvents", "Logs.Arn"),
        ("sqs:SendMessage", "Events.Arn"),
    }
    assert "ManagedPolicyArns" not in role


def test_nothing_is_left_when_the_stack_is_deleted() -> None:
    for name, resource in RESOURCES.items():
        assert resource.get("DeletionPolicy", "Delete") == "Delete", name
        assert resource.get("UpdateReplacePolicy", "Delete") == "Delete", name
    (function,) = of_type("AWS::Lambda::Function").values()
    assert function["LoggingConfig"]["LogGroup"] == {"Ref": "Logs"}, "Lambda would make a log group of its own"


def test_no_name_is_fixed_so_that_runs_do_not_collide() -> None:
    for name, resource in RESOURCES.items():
        properties = resource["Properties"]
        for key in ("FunctionName", "RoleName", "QueueName", "LogGroupName"):
            assert not isinstance(properties.get(key), str), name


def test_every_route_is_limited() -> None:
    for name, stage in of_type("AWS::ApiGatewayV2::Stage").items():
        routes = {each["RouteKey"] for each in of_type("AWS::ApiGatewayV2::Route").values()}
        limited = set(stage.get("RouteSettings", {}))
        assert "DefaultRouteSettings" in stage or {"$connect", "$disconnect", "echo"} == limited <= routes, name


def test_the_authorizer_has_no_identity_source() -> None:
    (authorizer,) = of_type("AWS::ApiGatewayV2::Authorizer").values()
    assert authorizer["IdentitySource"] == []
    (connect,) = (
        each for each in of_type("AWS::ApiGatewayV2::Route").values() if each.get("AuthorizationType") == "CUSTOM"
    )
    assert connect["RouteKey"] == "$connect"


def test_the_stages_and_outputs_are_those_of_the_target() -> None:
    class Session:
        region_name = "eu-west-1"

        def get_credentials(self) -> None: ...

        def client(self, _: str) -> None: ...

    outputs = {name: f"{name.lower()}.example" for name in SOURCE["Outputs"]}
    target = aws.target(Session(), outputs, Masker())
    stages = {each["StageName"] for each in of_type("AWS::ApiGatewayV2::Stage").values()}
    used = [target.main, target.authorized, *target.limited.values()]
    assert {each.url.rpartition("/")[2] for each in used} == stages
    assert target.main.url == "wss://host.example/main"
    assert target.authorized.endpoint == "https://authorizedhost.example/main"


def test_the_emulator_has_the_routes_of_the_template_with_the_same_responses() -> None:
    responding = {each["RouteId"]["Ref"] for each in of_type("AWS::ApiGatewayV2::RouteResponse").values()}
    routes = {
        each["RouteKey"]: name in responding
        for name, each in of_type("AWS::ApiGatewayV2::Route").items()
        if each["ApiId"] == {"Ref": "Api"}
    }
    assert {key: route.response for key, route in local_target._ROUTES.items()} == routes


def test_the_ping_that_is_asked_about_is_the_one_that_is_deployed() -> None:
    deployed = Template("api").source["Resources"]
    for asked, ours in (("MockIntegration", "PingMock"), ("MockResponse", "PingMockResponse")):
        text = json.dumps(RESOURCES[asked]["Properties"]).replace("MockIntegration", "PingMock")
        assert json.loads(text) == deployed[ours]["Properties"]


def test_what_is_not_asked_here_is_a_question() -> None:
    assert local_target.NOT_ASKED.keys() <= BY_NAME.keys()
    assert len(BY_NAME) == len(QUESTIONS)


def test_the_document_has_every_question_in_the_same_words() -> None:
    text = (CHECKOUT / "docs/first-account.md").read_text().partition("## What the script asks")[2]
    table = text.partition("## What it cannot ask")[0]
    rows = [
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", table).splitlines()
        if line.startswith("|") and not line.startswith("|---")
    ]
    assert [row[:5] for row in rows[1:]] == [
        (each.name, each.question, each.why, each.assumed, each.how) for each in QUESTIONS
    ]
    assert all(row[5] and row[6] for row in rows), "each has what was seen, or that nothing was"
