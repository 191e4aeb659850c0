"""From an EventBridge bus and an SNS topic to members, as docs/reference-publishers.md shows it, with a real worker.

Ministack runs the deployed templates. It does not check queues' policies, passes no group on from a rule to a standard
queue, and has no dead-letter queues of targets: tests/unit/test_templates_events.py checks what the templates say.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import msgspec
import pytest

from deploy.ecs.__main__ import Deployment
from deploy.ecs.parameters import check
from gatecast import Broadcast, decode, queue_message
from local.ministack import Ministack
from tests.connections_endpoint import ConnectionsEndpoint
from tests.members import connection_ids, write_members
from tests.queues import dead_letters, queue_depth
from tests.worker_fixtures import Launch
from tests.worker_process import eventually

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs/reference-publishers.md").read_text()
SERVICES = ("cloudformation", "dynamodb", "events", "iam", "s3", "sns", "sqs")
PRICE = Broadcast(id="price-4712", room="ticker", json=msgspec.Raw(b'{"price": 12.5}'))

Deploy = Callable[..., Deployment]


def examples(heading: str, language: str) -> list[str]:
    """The code blocks in this language of a section."""
    section = DOCUMENT.split(f"### {heading}\n")[1].split("\n## ")[0].split("\n### ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def parameters(example: int) -> dict[str, str]:
    return tomllib.loads(examples("From EventBridge", "toml")[example])


@pytest.fixture(scope="module")
def ministack() -> Iterator[Ministack]:
    with Ministack.start(services=SERVICES) as running:
        yield running


@pytest.fixture
def session(ministack: Ministack, aws: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> boto3.session.Session:
    monkeypatch.setenv("AWS_ENDPOINT_URL", ministack.url)
    return boto3.session.Session(region_name=aws["AWS_REGION"])


@pytest.fixture
def deploy(session: Any, unique_name: str) -> Iterator[Deploy]:
    """Deploys queue, table and rule with these parameters. Called again, it updates them."""
    made: list[Deployment] = []

    def run(**values: str) -> Deployment:
        made.append(Deployment(session, {"Name": unique_name, **values}, poll_seconds=0.05))
        check(values, {name: made[-1].stacks.parameters(name) for name in ("api", "data", "events")})
        for name in ("data", "events"):
            made[-1].deploy_one(name)
        return made[-1]

    yield run
    if made:
        made[-1].destroy()


def put_event(session: Any, detail: Any, bus: str = "default", source: str = "orders") -> str:
    entry = {"Source": source, "DetailType": "Order", "Detail": json.dumps(detail), "EventBusName": bus}
    response = session.client("events").put_events(Entries=[entry])
    assert response["FailedEntryCount"] == 0
    event_id: str = response["Entries"][0]["EventId"]
    return event_id


def received(sqs: Any, url: str) -> list[Broadcast]:
    """All messages on the queue, by id; they are deleted."""
    found = []
    while messages := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages"):
        for each in messages:
            found.append(decode(each["Body"]))
            sqs.delete_message(QueueUrl=url, ReceiptHandle=each["ReceiptHandle"])
    return found


async def test_events_of_a_bus_reach_the_connections_of_their_user(
    session: Any, deploy: Deploy, sqs: Any, dynamodb: Any, endpoint: ConnectionsEndpoint, launch: Launch
) -> None:
    values = deploy(**parameters(0)).values
    ann, bob = connection_ids(3, "a"), connection_ids(2, "b")
    write_members(dynamodb, values["TableName"], "@user/ann", ann)
    write_members(dynamodb, values["TableName"], "@user/bob", bob)
    worker = launch(
        GATECAST_QUEUE_URL=values["QueueUrl"],
        GATECAST_DEAD_LETTER_QUEUE_URL=values["DeadLetterQueueUrl"],
        GATECAST_TABLE=values["TableName"],
    )
    await worker.ready()
    detail = {"user": "ann", "text": 'quotes " and \\, braces {}<id>, zoë 🎉\n', "items": [{"n": 1}], "v": 2}

    put_event(session, detail)
    put_event(session, {"user": "ann"}, source="another")
    put_event(session, {"no": "user"})
    put_event(session, {"user": 'ann", "room": "@user/bob'})
    put_event(session, {"user": "ann\\"})
    put_event(session, {"user": "not a name"})
    put_event(session, {"user": "bob", "text": "x" * 131_072})

    await eventually(lambda: len(dead_letters(sqs, values["DeadLetterQueueUrl"])) == 2)
    await eventually(lambda: queue_depth(sqs, values["QueueUrl"]) == 0)
    assert endpoint.delivered == dict.fromkeys(ann, 1)
    [body] = endpoint.bodies
    assert json.loads(body) == detail
    reasons = sorted(each.reason.partition(":")[0] for each in dead_letters(sqs, values["DeadLetterQueueUrl"]))
    assert reasons == ["poison", "poison"]


def test_the_id_is_that_of_the_event_and_the_age_that_of_the_message(session: Any, deploy: Deploy, sqs: Any) -> None:
    pattern = '{"source": ["orders"], "detail": {"total": [{"numeric": [">", 10]}]}}'
    values = deploy(EventPattern=pattern, EventRoom="big-orders").values
    ids = [put_event(session, {"total": total}) for total in (5, 50, 500)]
    published = {each.id: each for each in received(sqs, values["QueueUrl"])}
    assert published.keys() == set(ids[1:])
    for each in published.values():
        assert (each.room, each.published_at_ms) == ("big-orders", msgspec.UNSET)


def test_a_rule_on_another_bus_is_changed_and_removed_with_its_parameters(
    session: Any, deploy: Deploy, sqs: Any, unique_name: str
) -> None:
    events = session.client("events")
    bus = events.create_event_bus(Name=unique_name)["EventBusArn"].rpartition("/")[2]
    given = {"EventBus": bus, "EventPattern": '{"source": ["orders"]}'}
    url = deploy(**given, EventRoom="first").values["QueueUrl"]
    put_event(session, {}, bus)
    put_event(session, {})
    assert [each.room for each in received(sqs, url)] == ["first"]
    by_path = {"EventPattern": '{"source": ["orders"], "detail": {"room": ["second"]}}'}
    deploy(**{**given, **by_path}, EventRoomPath="$.detail.room")
    put_event(session, {"room": "second"}, bus)
    assert [each.room for each in received(sqs, url)] == ["second"]
    deploy()
    put_event(session, {"room": "third"}, bus)
    assert received(sqs, url) == []
    assert events.list_rules(EventBusName=bus)["Rules"] == []
    events.delete_event_bus(Name=bus)


@pytest.fixture
def shell(aws: dict[str, str], ministack: Ministack) -> Callable[..., str]:
    """Runs commands of the document with the AWS CLI; skips the test if that is not installed."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    if shutil.which("aws", path=path) is None:
        pytest.skip("the AWS CLI is not installed")

    def run(command: str, **variables: str) -> str:
        environment = {**os.environ, **aws, "PATH": path, "AWS_PAGER": "", **variables}
        defined = f'aws() {{ command aws --endpoint-url {ministack.url} "$@"; }}\n'
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", defined + command],
            env=environment, cwd=ROOT, check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    return run


def test_a_further_rule_is_deployed_with_the_command_line(
    session: Any, deploy: Deploy, sqs: Any, shell: Callable[..., str]
) -> None:
    [command] = examples("From EventBridge", "sh")
    senders = parameters(1)
    values = deploy(**senders).values
    shell(command, QUEUE_ARN=values["QueueArn"])
    cloudformation = session.client("cloudformation")
    try:
        [stack] = cloudformation.describe_stacks(StackName="prices-events")["Stacks"]
        outputs = {each["OutputKey"]: each["OutputValue"] for each in stack["Outputs"]}
        assert outputs["RuleArn"].rpartition(":")[2] == senders["Senders"].rpartition(":")[2]
        event_id = put_event(session, {"price": 12.5}, source="prices")
        [published] = received(sqs, values["QueueUrl"])
        assert (published.id, published.room) == (event_id, "ticker")
    finally:
        cloudformation.delete_stack(StackName="prices-events")


@pytest.mark.parametrize("kind", ["standard", "fifo"])
def test_a_message_to_a_topic_is_the_message_on_the_queue(
    session: Any, deploy: Deploy, sqs: Any, shell: Callable[..., str], unique_name: str, kind: str
) -> None:
    fifo = kind == "fifo"
    attributes = {"FifoTopic": "true"} if fifo else {}
    name = f"{unique_name}{'.fifo' if fifo else ''}"
    topic = session.client("sns").create_topic(Name=name, Attributes=attributes)["TopicArn"]
    values = deploy(Queue=kind, Senders=topic).values
    [commands] = examples("From SNS", "sh")
    expected = queue_message(PRICE, fifo=fifo)
    if fifo:
        commands = commands.rstrip() + f" --message-deduplication-id {expected['MessageDeduplicationId']}"
    shell(commands, TOPIC_ARN=topic, QUEUE_ARN=values["QueueArn"])
    [message] = sqs.receive_message(QueueUrl=values["QueueUrl"], MessageSystemAttributeNames=["All"])["Messages"]
    assert decode(message["Body"]) == PRICE
    names = {"MessageGroupId", "MessageDeduplicationId"}
    given = {name: value for name, value in message["Attributes"].items() if name in names}
    assert given == {name: value for name, value in expected.items() if name in names}
