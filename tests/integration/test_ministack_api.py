"""The templates deployed with `deploy.ecs` to ministack's CloudFormation, as far as ministack supports them.

The routes run there as Lambda functions, and a worker process with the environment from its template delivers through
ministack's own WebSocket API. `gatecast.emulator` is not involved.

ministack 1.5.33 has no route responses (it always responds, so `Replies` may be "no"), no integration responses (so a
function responds to pings), no scaling, no metric math in alarms and no NAT. So the stacks network, observe and worker
are not deployed here; tests/unit/test_templates.py reads them.
"""

import asyncio
import json
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import boto3
import pytest
import websockets
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from websockets.asyncio.client import ClientConnection

from deploy.ecs import artifacts, stacks
from deploy.ecs.__main__ import ORDER, Deployment
from deploy.ecs.stacks import DeployError
from gatecast import Broadcast, Publisher
from local.ministack import Ministack
from local.resources import write_room_settings
from routes.environment import OPEN_ACCESS
from tests.members import items_left, write_members
from tests.templates import Template
from tests.tokens import AUDIENCE, ISSUER, SECRET, hs256
from tests.worker_process import WorkerProcess, eventually

SERVICES = ("apigateway", "cloudformation", "dynamodb", "execute-api", "iam", "lambda", "s3", "secretsmanager", "sqs")
LOCK = Path(__file__).parents[2] / "requirements" / "routes.txt"


def install_from_here(target: Path, _architecture: str) -> None:
    """Copy the packages for Lambda from this environment instead of installing them: ministack runs functions here."""
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
    """Creates deployments, and removes them at the end."""
    made: list[Deployment] = []

    def make(**values: str) -> Deployment:
        made.append(Deployment(session, {"Name": unique_name, "Replies": "no", **values}, poll_seconds=0.05))
        return made[-1]

    yield make
    for each in made:
        each.destroy()
        each.destroy()  # idempotent
        assert not each.stacks.outputs("data")


class Deployed:
    """The deployed stacks, at the addresses where ministack serves them."""

    def __init__(self, deployment: Deployment, ministack: Ministack) -> None:
        for name in ("foundation", "account", "data", "api"):
            deployment.deploy_one(name)
        self.values = deployment.values
        self.endpoint = (
            f"{ministack.url}/_aws/execute-api/{self.values['ApiId']}/{self.values.get('StageName', 'live')}"
        )

    def connect(self, query: str = "", **headers: str) -> Any:
        url = self.endpoint.replace("http://", "ws://") + query
        return websockets.connect(url, open_timeout=60, additional_headers=headers)  # functions start

    @asynccontextmanager
    async def worker(self, aws: Mapping[str, str], log: Path) -> AsyncIterator[WorkerProcess]:
        """A worker process with its task's environment. Only the API's address differs from that on AWS."""
        template = Template("worker", {**self.values, "ConnectionsEndpoint": self.endpoint})
        (container,) = template.properties("Task")["ContainerDefinitions"]
        environment = {each["Name"]: str(each["Value"]) for each in container["Environment"]}
        with WorkerProcess.launch({**aws, **environment}, log) as worker:
            await worker.ready()
            yield worker


async def request(client: ClientConnection, action: str, **fields: Any) -> dict[str, Any]:
    """Send a request to a route and return its response, which must be the next message."""
    await client.send(json.dumps({"action": action, **fields}))
    response: dict[str, Any] = json.loads(await asyncio.wait_for(client.recv(), 30))
    return response


async def test_clients_connect_join_publish_receive_and_disconnect(
    deployments: Any, ministack: Ministack, aws: dict[str, str], dynamodb: Any, sqs: Any, tmp_path: Path
) -> None:
    deployed = await asyncio.to_thread(Deployed, deployments(Authorizer=OPEN_ACCESS), ministack)
    table = deployed.values["TableName"]
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(deployed.worker(aws, tmp_path / "worker.log"))
        first, second, stranger = [await stack.enter_async_context(deployed.connect()) for _ in range(3)]
        for client in (first, second):
            assert (await request(client, "join", room="lobby"))["type"] == "ok"
        assert (await request(stranger, "publish", room="lobby", data="x"))["code"] == "not_a_member"
        assert (await request(stranger, "dance"))["code"] == "unknown_action"

        response = await request(first, "publish", room="lobby", data="hello", echo=False)
        assert response["type"] == "ok"
        assert await asyncio.wait_for(second.recv(), 30) == "hello"

        # From a publisher, to all connections; some of them are gone.
        gone = [f"{number:016x}" for number in range(5)]
        write_members(dynamodb, table, "@all", gone)
        publisher = Publisher(sqs, deployed.values["QueueUrl"])
        publisher.publish(Broadcast(id="all", room="@all", data="everybody"))
        for client in (first, second, stranger):
            assert await asyncio.wait_for(client.recv(), 30) == "everybody"
        await eventually(lambda: items_left(dynamodb, table, "@all", gone) == 0)
        assert await worker.metric('gatecast_deliveries_total{outcome="gone"}') == len(gone)

        assert (await request(second, "leave", room="lobby"))["type"] == "ok"
        await request(first, "publish", room="lobby", data="to myself")
        assert await asyncio.wait_for(first.recv(), 30) == "to myself"
        await stranger.close()
        await eventually(lambda: connections(dynamodb, table) == 2)
    await eventually(lambda: connections(dynamodb, table) == 0)


async def test_a_room_with_history_and_presence_remembers_and_counts(
    deployments: Any, ministack: Ministack, aws: dict[str, str], session: Any, dynamodb: Any, tmp_path: Path
) -> None:
    secret = session.client("secretsmanager").create_secret(Name="of-" + tmp_path.name, SecretString=SECRET)["ARN"]
    deployment = deployments(TokenIssuer=ISSUER, TokenAudience=AUDIENCE, TokenSecretArn=secret, PingFunction="yes")
    deployed = await asyncio.to_thread(Deployed, deployment, ministack)
    write_room_settings(dynamodb, deployed.values["TableName"], {"history_seconds": 60, "presence": 10}, name="chat/*")
    token = hs256(sub="ann", gatecast={"join": ["chat/*"], "publish": ["chat/*"]})
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(deployed.worker(aws, tmp_path / "worker.log"))
        # as a header alone, because ministack does not return the chosen subprotocol
        offer = {"Sec-WebSocket-Protocol": "gatecast.v2"}
        client = await stack.enter_async_context(deployed.connect(f"?token={token}", **offer))
        frames: dict[str, Any] = {}
        for each in (
            {"action": "join", "room": "chat/1", "ref": "j"},
            {"action": "publish", "room": "chat/1", "json": {"n": 1}, "ref": "p"},
        ):
            await client.send(json.dumps(each))
            while each["ref"] not in frames:  # frames may arrive before the response to what caused them
                frame = json.loads(await asyncio.wait_for(client.recv(), 30))
                frames[frame.get("ref", frame["type"])] = frame
        while not {"messages", "presence"} <= frames.keys():
            frame = json.loads(await asyncio.wait_for(client.recv(), 30))
            frames[frame["type"]] = frame
        joined = frames["j"]
        assert (joined["type"], joined["recovered"], joined["messages"]) == ("ok", True, [])
        assert frames["presence"]["joined"] == ["ann"]
        (message,) = frames["messages"]["messages"]
        assert (message["offset"], message["from"], message["json"]) == (joined["offset"] + 1, "ann", {"n": 1})

        history = await request(client, "history", room="chat/1", since=joined["offset"])
        assert (history["offset"], history["recovered"], history["messages"]) == (message["offset"], True, [message])
        assert (await request(client, "members", room="chat/1"))["users"] == [{"user": "ann", "connections": 1}]
        assert (await request(client, "count", room="chat/1"))["members"] == 1
        assert await request(client, "ping", ref=7) == {"type": "pong", "ref": 7}


def connections(dynamodb: Any, table: str) -> int:
    """Connection items in the table."""
    pages = dynamodb.get_paginator("scan").paginate(TableName=table)
    return sum(item["sk"]["S"] == "connection" for page in pages for item in page["Items"])


async def test_connecting_requires_a_valid_token(
    session: Any, deployments: Any, ministack: Ministack, unique_name: str
) -> None:
    secret = session.client("secretsmanager").create_secret(Name=unique_name, SecretString=SECRET)["ARN"]
    deployment = deployments(TokenIssuer=ISSUER, TokenAudience=AUDIENCE, TokenSecretArn=secret)
    deployed = await asyncio.to_thread(Deployed, deployment, ministack)
    # If the authorizer raises Unauthorized, ministack returns 500; API Gateway returns 401.
    for query, status in (("", 500), ("?token=a.b.c", 500), (f"?token={hs256(gatecast=7)}", 403)):
        with pytest.raises(websockets.InvalidStatus) as rejected:
            async with deployed.connect(query):
                pass
        assert rejected.value.response.status_code == status, query
    token = hs256(gatecast={"join": ["lobby"], "publish": []})
    async with deployed.connect(f"?token={token}") as client:
        assert (await request(client, "join", room="lobby"))["type"] == "ok"
        assert (await request(client, "join", room="elsewhere"))["type"] == "error"
        assert (await request(client, "publish", room="lobby", data="x"))["type"] == "error"


async def test_the_http_api_serves_backends_and_those_whom_the_authorizer_admits(
    session: Any, deployments: Any, ministack: Ministack, unique_name: str, sqs: Any
) -> None:
    secret = session.client("secretsmanager").create_secret(Name=unique_name, SecretString=SECRET)["ARN"]
    deployment = deployments(HttpApi="yes", TokenIssuer=ISSUER, TokenAudience=AUDIENCE, TokenSecretArn=secret)
    await asyncio.to_thread(Deployed, deployment, ministack)
    await asyncio.to_thread(deployment.deploy_one, "http")
    api_id = deployment.values["HttpApiUrl"].removeprefix("https://").partition(".")[0]
    api = f"{ministack.url}/_aws/execute-api/{api_id}/$default"

    status, body = await asyncio.to_thread(
        signed_request, session, "POST", f"{api}/rooms/chat/1/messages", b'{"a":  1}'
    )
    assert (status, list(body)) == (202, ["id"])
    (message,) = sqs.receive_message(QueueUrl=deployment.values["QueueUrl"])["Messages"]
    assert '"room":"chat/1"' in message["Body"]
    assert '"json":{"a":  1}' in message["Body"]

    # ministack's guard requires a signature here, too; so the token is where the authorizer accepts it besides
    token = hs256(gatecast={"join": ["lobby"], "publish": []})
    for path, expected in (
        (f"/client/rooms/other?token={token}", (400, "bad_request")),  # admitted, and the query has no token
        (f"/client/rooms/lobby?token={hs256(gatecast=7)}", (403, None)),
        ("/client/rooms/lobby", (500, None)),  # if the authorizer raises Unauthorized; API Gateway returns 401
    ):
        status, body = await asyncio.to_thread(signed_request, session, "GET", f"{api}{path}")
        assert (status, body.get("code")) == expected, body

    off = Deployment(session, {**deployment.values, "HttpApi": "no"}, poll_seconds=0.05)
    await asyncio.to_thread(off.deploy_one, "http")
    assert off.stacks.status("http") is None


def signed_request(session: Any, method: str, url: str, body: bytes = b"") -> tuple[int, dict[str, Any]]:
    asked = AWSRequest(method, url, headers={"Content-Type": "application/json"}, data=body)
    SigV4Auth(session.get_credentials(), "execute-api", session.region_name).add_auth(asked)
    request = urllib.request.Request(url, body or None, dict(asked.headers.items()), method=method)  # noqa: S310 - loopback
    try:
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_cloudformation_finds_the_same_parameters_as_the_template_tests(session: Any, unique_name: str) -> None:
    ours = stacks.Stacks(session.client("cloudformation"), unique_name, say=print)
    for name in ORDER:
        assert {parameter.name for parameter in ours.parameters(name)} == Template(name).parameters.keys()


def test_an_api_without_authorizer_must_be_requested_explicitly(deployments: Any) -> None:
    deployment = deployments()
    deployment.deploy_one("foundation")
    deployment.deploy_one("data")
    with pytest.raises(
        DeployError, match=r"api: CloudFormation rejects the stack: .*Set TokenIssuer and TokenAudience"
    ):
        deployment.deploy_one("api")


BUCKET = """
Parameters: { Bucket: { Type: String }, Color: { Type: String, Default: red } }
Resources:
  Bucket:
    Type: AWS::S3::Bucket
    Properties: { BucketName: !Ref Bucket, Tags: [{ Key: color, Value: !Ref Color }] }
Outputs: { BucketName: { Value: !Ref Bucket } }
"""


def test_a_failed_stack_is_reported_and_replaced_and_an_unchanged_one_is_left_unchanged(
    session: Any, unique_name: str, tmp_path: Path
) -> None:
    (tmp_path / "one.yaml").write_text(BUCKET)
    printed: list[str] = []
    ours = stacks.Stacks(
        session.client("cloudformation"), unique_name, say=printed.append, poll_seconds=0.05, folder=tmp_path
    )
    s3 = session.client("s3")
    s3.create_bucket(Bucket=unique_name)
    with pytest.raises(
        DeployError, match=r"one: CREATE_FAILED\n  Bucket \(AWS::S3::Bucket\): .*already exists\nRemove the cause"
    ):
        ours.deploy("one", {"Bucket": unique_name})
    s3.delete_bucket(Bucket=unique_name)

    assert ours.deploy("one", {"Bucket": unique_name, "Other": "ignored"}) == {"BucketName": unique_name}
    ours.deploy("one", {"Bucket": unique_name})
    ours.deploy("one", {"Bucket": unique_name, "Color": "blue"})
    ours.destroy("one")
    ours.destroy("one")

    assert [re.sub(r" in \d+ s", "", line) for line in printed] == [
        "one: removing what a failed attempt left behind (CREATE_FAILED)",
        "one: created",
        "one: unchanged",
        "one: updated",
        "one: removing",
    ]
    assert ours.outputs("one") == {}
