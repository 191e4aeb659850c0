"""`gatecast doctor` finds what is wrong with a set-up, names the remedy, and changes nothing."""

import asyncio
import email.utils
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from gatecast.cli.__main__ import invoke
from gatecast.cli.doctor.permissions import Role, needs
from gatecast.emulator import Gateway, Mock, Route
from local.ministack import Ministack
from local.resources import Queues
from tests.chaos.service_proxy import ServiceFault, ServiceProxy, ServiceResponse
from tests.connections_endpoint import ConnectionsEndpoint

Found = dict[str, str]
Doctor = Callable[..., Awaitable[list[Found]]]
OPERATIONS = {"dynamodb:PartiQLInsert": "ExecuteTransaction"}
"""The operation of an action, where the names differ."""
DENIED = "User: arn:aws:iam::1:user/ann is not authorized to perform: {} because no identity-based policy allows it"


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    async with Gateway({"$default": Route(Mock({"statusCode": 200}))}) as running:
        yield running


@pytest.fixture
def doctor(
    aws: dict[str, str],
    queues: Queues,
    table: str,
    gateway: Gateway,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Doctor:
    """Runs the command in a set-up that is right except for these variables, and returns what is not ok."""
    del aws
    right = {
        "GATECAST_QUEUE_URL": queues.url,
        "GATECAST_DEAD_LETTER_QUEUE_URL": queues.dead_letter_url,
        "GATECAST_TABLE": table,
        "GATECAST_CONNECTIONS_ENDPOINT": gateway.endpoint,
    }

    async def run(*arguments: str, **variables: str) -> list[Found]:
        for name, value in {**right, **variables}.items():
            monkeypatch.setenv(name, value)
        code = await asyncio.to_thread(invoke, ["doctor", *arguments, "--output", "json"])
        out, errors = capfd.readouterr()
        assert not errors
        report = json.loads(out)
        wrong = [each for each in report["findings"] if each["state"] == "FAILED"]
        assert report["ok"] == (not wrong) == (code == 0)
        return [each for each in report["findings"] if each["state"] not in {"ok", "skipped"}]

    return run


def check(found: list[Found], check: str, what: str, remedy: str) -> None:
    """There is one failure with this check and these texts."""
    [finding] = [each for each in found if each["check"] == check and each["state"] == "FAILED"]
    assert what in finding["what"]
    assert remedy in finding["remedy"]


def messages(sqs: Any, queues: Queues) -> int:
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    return sum(
        int(sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"][name])
        for url in (queues.url, queues.dead_letter_url)
        for name in names
    )


@pytest.mark.parametrize("role", Role)
async def test_where_nothing_is_wrong_it_finds_nothing_and_changes_nothing(
    doctor: Doctor, role: Role, sqs: Any, dynamodb: Any, queues: Queues, table: str
) -> None:
    assert not await doctor("--role", role)
    assert messages(sqs, queues) == 0
    assert dynamodb.scan(TableName=table)["Count"] == 0


async def test_a_message_that_is_waiting_is_left_alone(doctor: Doctor, sqs: Any, queues: Queues) -> None:
    sqs.send_message(QueueUrl=queues.url, MessageBody="x")
    assert not await doctor()
    [message] = sqs.receive_message(QueueUrl=queues.url, MessageSystemAttributeNames=["All"])["Messages"]
    assert message["Attributes"]["ApproximateReceiveCount"] == "2"


async def test_for_people_it_prints_lines(doctor: Doctor, capfd: pytest.CaptureFixture[str]) -> None:
    await doctor()
    assert await asyncio.to_thread(invoke, ["doctor"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[1] == "ok       Region: us-east-1"
    assert lines[-1].startswith("nothing is wrong in ")


# Wrong set-ups


async def test_a_variable_that_is_missing(doctor: Doctor) -> None:
    misspelt = "GATECAST_TABLE".replace("LE", "EL")
    found = await doctor(**{"GATECAST_TABLE": "", misspelt: "x"})
    check(found, "variables", f"GATECAST_TABLE is missing ({misspelt} is set)", "set it to the DynamoDB table's")


async def test_a_queue_that_does_not_exist(doctor: Doctor, queues: Queues) -> None:
    found = await doctor(GATECAST_QUEUE_URL=f"{queues.url}x")
    check(found, "queue", f"'{queues.url}x': there is no such queue", "set GATECAST_QUEUE_URL")
    assert len(found) == 1, "reported once"


async def test_a_dead_letter_queue_that_does_not_exist(doctor: Doctor, queues: Queues) -> None:
    found = await doctor(GATECAST_DEAD_LETTER_QUEUE_URL=f"{queues.dead_letter_url}x")
    check(found, "dead-letter queue", "there is no such queue", "GATECAST_DEAD_LETTER_QUEUE_URL")


async def test_no_dead_letter_queue_is_a_warning(doctor: Doctor) -> None:
    [found] = await doctor(GATECAST_DEAD_LETTER_QUEUE_URL="")
    assert (found["check"], found["state"]) == ("dead-letter queue", "warning")


async def test_a_queue_without_a_redrive_policy(doctor: Doctor, sqs: Any, queues: Queues) -> None:
    sqs.set_queue_attributes(QueueUrl=queues.url, Attributes={"RedrivePolicy": ""})
    check(await doctor(), "queue", "it has no redrive policy", "set its RedrivePolicy")


@pytest.mark.parametrize("spelling", ["{}", "{}/"])
async def test_a_dead_letter_queue_that_is_the_queue(doctor: Doctor, queues: Queues, spelling: str) -> None:
    found = await doctor(GATECAST_DEAD_LETTER_QUEUE_URL=spelling.format(queues.url))
    check(found, "dead-letter queue", "name the same queue", "set GATECAST_DEAD_LETTER_QUEUE_URL to another queue")


async def test_dead_letters_that_return(doctor: Doctor, sqs: Any, queues: Queues) -> None:
    arn = sqs.get_queue_attributes(QueueUrl=queues.url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 3})
    sqs.set_queue_attributes(QueueUrl=queues.dead_letter_url, Attributes={"RedrivePolicy": policy})
    check(await doctor(), "queue", "moves its messages back to GATECAST_QUEUE_URL", "remove that policy")


async def test_a_table_that_does_not_exist(doctor: Doctor) -> None:
    found = await doctor(GATECAST_TABLE="nowhere")
    check(found, "table", "GATECAST_TABLE is 'nowhere': there is no such table", "set GATECAST_TABLE")
    assert len(found) == 1


async def test_a_table_with_other_keys(doctor: Doctor, dynamodb: Any, unique_name: str) -> None:
    dynamodb.create_table(
        TableName=f"{unique_name}-other",
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        BillingMode="PAY_PER_REQUEST",
    )
    found = await doctor(GATECAST_TABLE=f"{unique_name}-other")
    check(found, "table", "is id (S): expected pk (S), sk (S)", "create a table with that key")


async def test_a_table_without_time_to_live(doctor: Doctor, dynamodb: Any, table: str) -> None:
    dynamodb.update_time_to_live(
        TableName=table, TimeToLiveSpecification={"Enabled": False, "AttributeName": "expires_at"}
    )
    check(await doctor(), "table", "time to live is off", "aws dynamodb update-time-to-live")


async def test_an_endpoint_that_cannot_be_reached(doctor: Doctor) -> None:
    found = await doctor(GATECAST_CONNECTIONS_ENDPOINT="http://127.0.0.1:1/live")
    what = "'http://127.0.0.1:1/live' cannot be reached"
    check(found, "endpoint", what, "check the host in GATECAST_CONNECTIONS_ENDPOINT")


async def test_an_endpoint_with_another_stage(doctor: Doctor, gateway: Gateway) -> None:
    found = await doctor(GATECAST_CONNECTIONS_ENDPOINT=f"{gateway.endpoint}x")
    check(found, "endpoint", "has no such path or stage (status 403)", "with the stage and nothing behind it")


async def test_an_endpoint_that_is_another_server(doctor: Doctor) -> None:
    async with ConnectionsEndpoint.serving() as server:
        server.reference_status = 404
        check(await doctor(GATECAST_CONNECTIONS_ENDPOINT=server.url), "endpoint", "(status 404)", "with the stage and")
        server.reference_status = 200
        [found] = await doctor(GATECAST_CONNECTIONS_ENDPOINT=server.url)
    assert (found["check"], found["state"]) == ("endpoint", "warning")


async def test_an_endpoint_in_another_form(doctor: Doctor, gateway: Gateway) -> None:
    found = await doctor(GATECAST_CONNECTIONS_ENDPOINT=f"{gateway.endpoint}/@connections")
    check(found, "variables", "leave out /@connections", "set it to the API's address")


async def test_a_queue_in_another_region(doctor: Doctor) -> None:
    found = await doctor(GATECAST_QUEUE_URL="https://sqs.eu-west-1.amazonaws.com/123456789012/gatecast")
    what = "GATECAST_QUEUE_URL is in the Region eu-west-1, but AWS_REGION is us-east-1"
    check(found, "Region", what, "set AWS_REGION to it")


async def test_a_region_that_no_address_shows(doctor: Doctor) -> None:
    found = await doctor(AWS_REGION="eu-west-1")
    check(found, "endpoint", "PostToConnection failed (InvalidSignatureException)", "set AWS_REGION to the Region")
    check(found, "queue", "there is no such queue", "AWS_REGION to its Region")


async def test_no_region(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    check(await doctor(AWS_REGION=""), "Region", "AWS_REGION is missing", "set it to the Region")


async def test_no_credentials(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    check(await doctor(), "credentials", "there are no AWS credentials", "set AWS_PROFILE (and run aws sso login)")


async def test_credentials_that_the_api_does_not_know(doctor: Doctor) -> None:
    found = await doctor(AWS_ACCESS_KEY_ID="AKIANOBODY")
    check(found, "endpoint", "UnrecognizedClientException", "check AWS_PROFILE, or AWS_ACCESS_KEY_ID")


@pytest.fixture
async def proxy(ministack: Ministack, doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ServiceProxy]:
    """Between the command and SQS and DynamoDB."""
    del doctor  # its variables come first
    async with LateProxy.serving(ministack.url) as running:
        for name, value in running.environment().items():
            monkeypatch.setenv(name, value)
        yield running


class LateProxy(ServiceProxy):
    """Its clock is `late_seconds` late."""

    late_seconds = 0.0

    async def _handle(self, request: web.Request) -> web.Response:
        response = await super()._handle(request)
        response.headers["Date"] = email.utils.formatdate(time.time() - self.late_seconds, usegmt=True)
        return response


def error(code: str, message: str) -> ServiceFault:
    return ServiceResponse(400, json.dumps({"__type": f"com.amazonaws#{code}", "message": message}))


async def test_a_clock_that_is_wrong(doctor: Doctor, proxy: LateProxy) -> None:
    proxy.late_seconds = 3_600.0
    check(await doctor(), "clock", " s ahead of the services'", "set this machine's clock")


async def test_a_clock_that_is_so_wrong_that_calls_are_rejected(doctor: Doctor, proxy: LateProxy) -> None:
    message = "Signature expired: 20261127T100000Z is now earlier than 20261127T100500Z (20261127T102000Z - 15 min.)"
    proxy.fault = lambda _: error("InvalidSignatureException", message)
    proxy.late_seconds = -1_200.0
    found = await doctor()
    check(found, "queue", "InvalidSignatureException", "set this machine's clock")
    check(found, "table", "InvalidSignatureException", "set this machine's clock")
    check(found, "clock", "behind the services'", "set this machine's clock")


async def test_credentials_that_have_expired(doctor: Doctor, proxy: ServiceProxy) -> None:
    proxy.fault = lambda _: error("ExpiredTokenException", "The security token included in the request is expired")
    found = await doctor()
    check(found, "queue", "ExpiredTokenException", "sign in again (aws sso login)")
    check(found, "table", "ExpiredTokenException", "sign in again (aws sso login)")


NEEDED = {(need.action, role) for role in Role for need in needs(role) if need.action != "sqs:GetQueueAttributes"}


@pytest.mark.parametrize(("action", "role"), sorted(NEEDED))
async def test_a_permission_that_is_missing(doctor: Doctor, proxy: ServiceProxy, action: str, role: Role) -> None:
    operation = OPERATIONS.get(action, action.partition(":")[2])
    denied = error("AccessDeniedException", DENIED.format(action))
    proxy.fault = lambda called: denied if called == operation else None
    found = await doctor("--role", role)
    assert found
    for finding in found:
        assert finding["check"].startswith(f"permission {action} (GATECAST_")
        assert f"not authorized to perform: {action}" in finding["what"]
        assert finding["remedy"].startswith(f"allow {action} on what GATECAST_")
        assert "stack" in finding["remedy"]


async def test_attributes_that_may_not_be_read(doctor: Doctor, proxy: ServiceProxy) -> None:
    operations = {"GetQueueAttributes": "sqs", "DescribeTable": "dynamodb", "DescribeTimeToLive": "dynamodb"}
    proxy.fault = lambda called: error("AccessDenied", DENIED.format(called)) if called in operations else None
    assert not await doctor("--role", "operator"), "programs need none of these"
    found = await doctor()
    assert {each["check"].partition(" (")[0] for each in found} == {"permission sqs:GetQueueAttributes"}


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_a_permission_on_connections_that_is_missing(doctor: Doctor, method: str) -> None:
    async with ConnectionsEndpoint.serving() as server:
        server.reference_status = 403 if method == "POST" else 410
        server.close_status = lambda _id: 403 if method == "DELETE" else 410
        text = DENIED.format("execute-api:ManageConnections")
        server.error = ({"x-amzn-ErrorType": "AccessDeniedException"}, json.dumps({"message": text}))
        [found] = await doctor(GATECAST_CONNECTIONS_ENDPOINT=server.url)
    assert (found["check"], found["state"]) == (f"permission execute-api:ManageConnections ({method})", "FAILED")
    assert found["remedy"].startswith(f"allow it on …/{method}/@connections/*: update the stack worker")


async def test_the_account_is_asked_for_its_quota_only_where_the_api_is_on_aws(
    doctor: Doctor, proxy: ServiceProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_API_GATEWAY", proxy.environment()["AWS_ENDPOINT_URL_SQS"])
    proxy.fault = lambda called: None if called else ServiceResponse(200, '{"throttleSettings":{"rateLimit":2500}}')
    [found] = await doctor()
    assert (found["check"], found["state"]) == ("quotas", "warning")
    assert "2,500 requests per second" in found["what"]
