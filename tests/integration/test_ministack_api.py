"""The templates deployed for real, as far as ministack goes: with `deploy.ecs`, to its CloudFormation.

The routes run there as Lambda functions, and a worker process with the environment that its template gives it delivers
through ministack's own WebSocket API, to clients that know neither. Nothing of `local.gateway` has a part in this.

ministack 1.5.33 has no route responses (it always answers, so `Replies` may be "no") and no scaling, no metric math in
alarms, no NAT: the stacks network, observe and worker are not deployed here. tests/unit/test_templates.py reads them.
"""

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import boto3
import pytest
import websockets
from botocore.exceptions import ClientError
from websockets.asyncio.client import ClientConnection

from deploy.ecs import artifacts, stacks
from deploy.ecs.__main__ import ORDER, Deployment
from deploy.ecs.stacks import DeployError
from gatecast import Broadcast, Publisher
from local.ministack import Ministack
from routes.environment import OPEN_ACCESS
from tests.chaos.rooms import items_left, write_members
from tests.templates import Template
from tests.tokens import AUDIENCE, ISSUER, SECRET, hs256
from tests.worker_process import WorkerProcess, eventually

SERVICES = ("apigateway", "cloudformation", "dynamodb", "execute-api", "iam", "lambda", "s3", "secretsmanager", "sqs")
LOCK = Path(__file__).parents[2] / "requirements" / "routes.txt"


def install_from_here(target: Path, _architecture: str) -> None:
    """What pip would install for Lambda, copied from this environment: ministack runs functions on this machine."""
    for name in re.findall(r"^([a-z0-9._-]+)==", LOCK.read_text(), re.MULTILINE):
        try:
            files = metadata.files(name) or []
        except metadata.PackageNotFoundError:
            continue  # for other machines or versions of Python
        for file in files:
            if ".." not in file.parts and "__pycache__" not in file.parts:
                copy = target / file
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(str(file.locate()), copy)


@pytest.fixture(scope="module")
def ministack() -> Iterator[Ministack]:
    with Ministack.start(services=SERVICES) as running:
        yield running


@pytest.fixture
def session(ministack: Ministack, aws: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> boto3.session.Session:
    monkeypatch.setenv("AWS_ENDPOINT_URL", ministack.url)
    monkeypatch.setattr(artifacts, "install_packages", install_from_here)
    return boto3.session.Session(region_name=aws["AWS_REGION"])


@pytest.fixture
def deployments(session: Any, unique_name: str) -> Iterator[Any]:
    """Makes deployments, and removes them at the end."""
    made: list[Deployment] = []

    def make(**values: str) -> Deployment:
        made.append(Deployment(session, {"Name": unique_name, "Replies": "no", **values}, poll_seconds=0.05))
        return made[-1]

    yield make
    for each in made:
        each.destroy()
        each.destroy()  # may be repeated
        assert not each.stacks.outputs("data")


class Deployed:
    """What the stacks made, at the addresses where ministack serves it."""

    def __init__(self, deployment: Deployment, ministack: Ministack) -> None:
        for name in ("foundation", "account", "data", "api"):
            deployment.deploy_one(name)
        self.values = deployment.values
        self.endpoint = (
            f"{ministack.url}/_aws/execute-api/{self.values['ApiId']}/{self.values.get('StageName', 'live')}"
        )

    def connect(self, query: str = "") -> Any:
        return websockets.connect(self.endpoint.replace("http://", "ws://") + query)

    @asynccontextmanager
    async def worker(self, aws: Mapping[str, str], log: Path) -> AsyncIterator[WorkerProcess]:
        """A worker process with its task's environment. Only the API's address is another one here than on AWS."""
        template = Template("worker", {**self.values, "ConnectionsEndpoint": self.endpoint})
        (container,) = template.properties("Task")["ContainerDefinitions"]
        environment = {each["Name"]: str(each["Value"]) for each in container["Environment"]}
        with WorkerProcess.launch({**aws, **environment}, log) as worker:
            await worker.ready()
            yield worker


async def ask(client: ClientConnection, action: str, **fields: Any) -> dict[str, Any]:
    """Sends a message to a route and gives its answer, which is the next thing that comes."""
    await client.send(json.dumps({"action": action, **fields}))
    answer: dict[str, Any] = json.loads(await asyncio.wait_for(client.recv(), 30))
    return answer


async def test_from_connecting_to_a_broadcast_and_away(
    deployments: Any, ministack: Ministack, aws: dict[str, str], dynamodb: Any, sqs: Any, tmp_path: Path
) -> None:
    deployed = await asyncio.to_thread(Deployed, deployments(Authorizer=OPEN_ACCESS), ministack)
    table = deployed.values["TableName"]
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(deployed.worker(aws, tmp_path / "worker.log"))
        first, second, stranger = [await stack.enter_async_context(deployed.connect()) for _ in range(3)]
        for client in (first, second):
            assert (await ask(client, "join", room="lobby"))["type"] == "ok"
        assert (await ask(stranger, "publish", room="lobby", data="x"))["code"] == "not_a_member"
        assert (await ask(stranger, "dance"))["code"] == "unknown_action"

        answer = await ask(first, "publish", room="lobby", data="hello", echo=False)
        assert answer["type"] == "ok"
        assert await asyncio.wait_for(second.recv(), 30) == "hello"

        # From a program of ours, to all; among whom are some that vanished long ago.
        gone = [f"{number:016x}" for number in range(5)]
        write_members(dynamodb, table, "@all", gone)
        publisher = Publisher(sqs, deployed.values["QueueUrl"])
        publisher.publish(Broadcast(id="all", room="@all", data="everybody"))
        for client in (first, second, stranger):
            assert await asyncio.wait_for(client.recv(), 30) == "everybody"
        await eventually(lambda: items_left(dynamodb, table, "@all", gone) == 0)
        assert await worker.metric('gatecast_deliveries_total{outcome="gone"}') == len(gone)

        assert (await ask(second, "leave", room="lobby"))["type"] == "ok"
        answer = await ask(first, "publish", room="lobby", data="to myself")
        assert await asyncio.wait_for(first.recv(), 30) == "to myself"
        await stranger.close()
        await eventually(lambda: connections(dynamodb, table) == 2)
    await eventually(lambda: connections(dynamodb, table) == 0)


def connections(dynamodb: Any, table: str) -> int:
    """Connection items in the table."""
    pages = dynamodb.get_paginator("scan").paginate(TableName=table)
    return sum(item["sk"]["S"] == "connection" for page in pages for item in page["Items"])


async def test_only_with_a_token(session: Any, deployments: Any, ministack: Ministack, unique_name: str) -> None:
    secret = session.client("secretsmanager").create_secret(Name=unique_name, SecretString=SECRET)["ARN"]
    deployment = deployments(TokenIssuer=ISSUER, TokenAudience=AUDIENCE, TokenSecretArn=secret)
    deployed = await asyncio.to_thread(Deployed, deployment, ministack)
    # ministack answers 500 where the authorizer says Unauthorized; API Gateway answers 401.
    for query, status in (("", 500), ("?token=a.b.c", 500), (f"?token={hs256(gatecast=7)}", 403)):
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with deployed.connect(query):
                pass
        assert refused.value.response.status_code == status, query
    token = hs256(gatecast={"join": ["lobby"], "publish": []})
    async with deployed.connect(f"?token={token}") as client:
        assert (await ask(client, "join", room="lobby"))["type"] == "ok"
        assert (await ask(client, "join", room="elsewhere"))["type"] == "error"
        assert (await ask(client, "publish", room="lobby", data="x"))["type"] == "error"


def test_all_templates_are_understood_as_the_tests_understand_them(session: Any, unique_name: str) -> None:
    ours = stacks.Stacks(session.client("cloudformation"), unique_name, say=print)
    for name in ORDER:
        assert {parameter.name for parameter in ours.parameters(name)} == Template(name).parameters.keys()


def test_an_api_that_anyone_may_use_has_to_be_asked_for_in_words(deployments: Any) -> None:
    deployment = deployments()
    deployment.deploy_one("foundation")
    deployment.deploy_one("data")
    with pytest.raises(ClientError, match="Set TokenIssuer and TokenAudience"):
        deployment.deploy_one("api")


BUCKET = """
Parameters: { Bucket: { Type: String }, Color: { Type: String, Default: red } }
Resources:
  Bucket:
    Type: AWS::S3::Bucket
    Properties: { BucketName: !Ref Bucket, Tags: [{ Key: color, Value: !Ref Color }] }
Outputs: { BucketName: { Value: !Ref Bucket } }
"""


def test_what_failed_is_named_and_tried_anew_and_what_is_done_is_left_alone(
    session: Any, unique_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacks, "TEMPLATES", tmp_path)
    (tmp_path / "one.yaml").write_text(BUCKET)
    said: list[str] = []
    ours = stacks.Stacks(session.client("cloudformation"), unique_name, say=said.append, poll_seconds=0.05)
    s3 = session.client("s3")
    s3.create_bucket(Bucket=unique_name)
    with pytest.raises(DeployError, match=r"one: CREATE_FAILED\n  Bucket \(AWS::S3::Bucket\): .*already exists$"):
        ours.deploy("one", {"Bucket": unique_name})
    s3.delete_bucket(Bucket=unique_name)

    assert ours.deploy("one", {"Bucket": unique_name, "Other": "ignored"}) == {"BucketName": unique_name}
    ours.deploy("one", {"Bucket": unique_name})
    ours.deploy("one", {"Bucket": unique_name, "Color": "blue"})
    ours.destroy("one")
    ours.destroy("one")

    assert [re.sub(r" in \d+ s", "", line) for line in said] == [
        "one: removing what an earlier attempt left (CREATE_FAILED)",
        "one: created",
        "one: unchanged",
        "one: updated",
        "one: removing",
    ]
    assert ours.outputs("one") == {}
