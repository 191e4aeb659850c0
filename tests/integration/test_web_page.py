"""A web page of any origin, on the developer's machine, against every port that the embedded stack opens.

It sends the requests that a browser allows without a preflight, and those of a page whose own host name resolves to
127.0.0.1 (DNS rebinding). None may have an effect, and no response may be readable for the page.
"""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode

import boto3
import pytest
import websockets
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from gatecast.emulator.integration import Route
from gatecast.emulator.server import Gateway
from local.aws_environment import CREDENTIALS, REGION
from local.backend import Backend, prepare_backend
from local.ministack import Ministack
from local.stack import Stack

PAGES = {
    "an old browser": {},
    "an origin": {"Origin": "https://evil.example"},
    "an opaque origin": {"Origin": "null"},
    "cross-site": {"Sec-Fetch-Site": "cross-site"},
    "same-site": {"Sec-Fetch-Site": "same-site"},
    "a rebound host name": {"Host": "evil.example"},
}
FORM = "application/x-www-form-urlencoded"
FUNCTION = json.dumps(
    {"FunctionName": "page", "Runtime": "python3.11", "Role": "arn:aws:iam::0:role/x", "Handler": "x.y"}
)


class Sent(NamedTuple):
    method: str
    path: str
    body: str = ""
    content_type: str = "text/plain"
    service: str = "sqs"


def target(name: str) -> str:
    return f"/?{urlencode({'X-Amz-Target': name})}"


ATTEMPTS = {
    "create a function": Sent("POST", "/2015-03-31/functions", FUNCTION, service="lambda"),
    "invoke a function": Sent("POST", "/2015-03-31/functions/page/invocations", "{}", service="lambda"),
    "list functions": Sent("GET", "/2015-03-31/functions", service="lambda"),
    "create a queue by a query": Sent("GET", "/?Action=CreateQueue&QueueName=page"),
    "create a queue by a form": Sent("POST", "/", "Action=CreateQueue&QueueName=page", FORM),
    "create a queue as JSON": Sent("POST", target("AmazonSQS.CreateQueue"), '{"QueueName":"page"}'),
    "send a message": Sent("POST", "/000000000000/{queue}", "Action=SendMessage&MessageBody=page", FORM),
    "read the table": Sent("POST", target("DynamoDB_20120810.Scan"), '{"TableName":"{queue}"}', service="dynamodb"),
    "create a bucket": Sent("POST", "/page", "", FORM, service="s3"),
    "read messages": Sent("GET", "/_ministack/sqs/messages"),
    "reset the state": Sent("POST", "/_ministack/reset"),
    "configure": Sent("POST", "/_ministack/config", '{"lambda_svc.LAMBDA_EXECUTOR":"local"}'),
}


class Response(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: str


def send(url: str, sent: Sent, headers: Mapping[str, str]) -> Response:
    request = urllib.request.Request(  # noqa: S310 - http, on the loopback address
        f"{url}{sent.path}",
        sent.body.encode() if sent.method != "GET" else None,
        {"Content-Type": sent.content_type, **headers},
        method=sent.method,
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as response:  # noqa: S310
            return Response(response.status, dict(response.headers), response.read().decode())
    except urllib.error.HTTPError as error:
        return Response(error.code, dict(error.headers), error.read().decode())


def assert_rejected(response: Response) -> None:
    assert 400 <= response.status < 500, response
    assert_unreadable(response)


def assert_unreadable(response: Response) -> None:
    """Assert that a browser would withhold the response from a page of another origin."""
    assert not [name for name in response.headers if name.lower().startswith("access-control-")], response


def signed(url: str, sent: Sent, *, secret: str) -> dict[str, str]:
    request = AWSRequest(sent.method, f"{url}{sent.path}", data=sent.body, headers={"Content-Type": sent.content_type})
    SigV4Auth(Credentials("local", secret), sent.service, REGION).add_auth(request)
    return dict(request.headers.items())


@pytest.fixture
def queue(sqs: Any, dynamodb: Any, unique_name: str, ministack: Ministack) -> Iterator[str]:
    """The name of a table and a queue; asserts at the end that both are unchanged."""
    backend = prepare_backend(ministack, table=unique_name, queue=unique_name)
    before = sqs.list_queues().get("QueueUrls")
    yield unique_name
    assert sqs.list_queues().get("QueueUrls") == before
    assert "Messages" not in sqs.receive_message(QueueUrl=backend.queues.url)
    assert dynamodb.describe_table(TableName=unique_name)["Table"]["TableStatus"] == "ACTIVE"


def on_queue(sent: Sent, queue: str) -> Sent:
    return sent._replace(path=sent.path.replace("{queue}", queue), body=sent.body.replace("{queue}", queue))


@pytest.mark.parametrize("page", PAGES)
def test_ministack_does_nothing_for_a_page(ministack: Ministack, queue: str, page: str) -> None:
    for attempt in ATTEMPTS.values():
        sent = on_queue(attempt, queue)
        assert_rejected(send(ministack.url, sent, PAGES[page]))
        claimed = {"Authorization": f"AWS4-HMAC-SHA256 Credential=local/20260101/{REGION}/{sent.service}/aws4_request"}
        assert_rejected(send(ministack.url, sent, {**PAGES[page], **claimed}))


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_ministack_does_nothing_for_a_wrong_secret(ministack: Ministack, queue: str, attempt: str) -> None:
    sent = on_queue(ATTEMPTS[attempt], queue)
    for secret in ("local-secret", "test", ""):
        assert_rejected(send(ministack.url, sent, signed(ministack.url, sent, secret=secret)))


def test_a_valid_signature_is_rejected_from_a_page_and_for_another_request(ministack: Ministack, queue: str) -> None:
    sent = on_queue(ATTEMPTS["send a message"], queue)
    headers = signed(ministack.url, sent, secret=CREDENTIALS.secret_access_key)
    for page in ("an origin", "cross-site", "a rebound host name"):
        assert_rejected(send(ministack.url, sent, {**headers, **PAGES[page]}))
    assert_rejected(send(ministack.url, sent._replace(body=sent.body + "!"), headers))
    assert_rejected(send(ministack.url, sent._replace(path=f"{sent.path}?DelaySeconds=1"), headers))
    assert_rejected(send(ministack.url, sent, {**headers, "X-Amz-Date": "20200101T000000Z"}))


def test_services_that_were_not_requested_are_not_served(ministack: Ministack, aws: dict[str, str]) -> None:
    for attempt in ("create a function", "list functions"):
        sent = ATTEMPTS[attempt]
        headers = signed(ministack.url, sent, secret=CREDENTIALS.secret_access_key)
        assert send(ministack.url, sent, headers)[::2] == (403, "the service is not enabled")
        # Signed for a service that is enabled, ministack still offers no other one.
        headers = signed(ministack.url, sent._replace(service="sqs"), secret=CREDENTIALS.secret_access_key)
        assert 400 <= send(ministack.url, sent, headers).status < 500
    assert aws["AWS_SECRET_ACCESS_KEY"] == CREDENTIALS.secret_access_key


def test_readiness_reveals_nothing(ministack: Ministack) -> None:
    health = Sent("GET", "/_ministack/health")
    assert send(ministack.url, health, {})[::2] == (204, "")
    assert_rejected(send(ministack.url, health, PAGES["an origin"]))
    assert_rejected(send(ministack.url, health, PAGES["a rebound host name"]))


async def test_a_web_socket_to_ministack_is_rejected(ministack: Ministack) -> None:
    url = ministack.url.replace("http://", "ws://")
    with pytest.raises(websockets.InvalidStatus) as rejected:
        async with websockets.connect(f"{url}/_aws/execute-api/x/live"):
            pass
    assert rejected.value.response.status_code == 403


@pytest.fixture
async def stack(ministack: Ministack, unique_name: str) -> AsyncIterator[Stack]:
    backend: Backend = prepare_backend(ministack, table=unique_name, queue=unique_name)
    async with Stack.running(on=backend) as running:
        yield running


CONTROL = (
    Sent("GET", "/_emulator/counters"),
    Sent("GET", "/_emulator/connections"),
    Sent("POST", "/_emulator/drop", '["{id}"]'),
    Sent("PUT", "/_emulator/faults", '[{"fault":{"kind":"Reset"},"share":1}]'),
)


async def test_the_gateway_does_nothing_for_a_page(stack: Stack) -> None:
    gateway = f"http://127.0.0.1:{stack.gateway.port}"
    async with websockets.connect(stack.gateway.url):
        (connection_id,) = stack.gateway.connections
        post = Sent("POST", f"/local/@connections/{connection_id}", "from a page")
        for headers in PAGES.values():
            assert_rejected(await asyncio.to_thread(send, gateway, post, headers))
            for sent in CONTROL if headers else ():  # without a browser's headers it is a program
                sent = sent._replace(body=sent.body.replace("{id}", connection_id))  # noqa: PLW2901
                assert_rejected(await asyncio.to_thread(send, gateway, sent, headers))
        assert list(stack.gateway.connections) == [connection_id]
        assert stack.gateway.faults.next_fault("POST", connection_id) is None


async def test_a_worker_port_changes_nothing_for_a_page_and_is_unreadable(stack: Stack) -> None:
    (worker,) = stack.workers
    for headers in PAGES.values():
        for path in ("/healthz", "/readyz", "/metrics", "/broadcasts"):
            assert_unreadable(await asyncio.to_thread(send, worker.url, Sent("GET", path), headers))
            assert_rejected(await asyncio.to_thread(send, worker.url, Sent("POST", path, "x"), headers))
    assert worker.process.exit_code is None


async def test_the_control_interface_shows_no_tokens_cookies_or_subprotocols() -> None:
    async with (
        Gateway({}) as gateway,
        websockets.connect(
            f"{gateway.url}?client=7&token=SECRET",
            additional_headers={"Cookie": "a=SECRET", "Authorization": "SECRET"},
            subprotocols=[websockets.Subprotocol("SECRET")],
        ),
    ):
        (connection_id,) = gateway.connections
        response = await asyncio.to_thread(send, f"http://127.0.0.1:{gateway.port}", CONTROL[1], {})
        assert json.loads(response.body) == {connection_id: {"client": "7"}}


HOSTS = {
    "gateway:8080": True, "GATEWAY": True, "localhost": True, "[::1]:1": True, "127.0.0.1:1": True,
    "gateway.evil.example": False, "127.0.0.1.evil.example": False, "10.0.0.1": False, "gateway@evil.example": False,
}  # fmt: skip


async def test_a_gateway_is_addressed_by_allowed_host_names_only() -> None:
    domains: list[str] = []

    def connect(event: dict[str, Any], _: object) -> dict[str, Any]:
        domains.append(event["requestContext"]["domainName"])
        return {"statusCode": 200}

    async with Gateway({"$connect": Route(connect)}, allowed_hosts=("Gateway",)) as gateway:
        url = f"http://127.0.0.1:{gateway.port}"
        for host, allowed in HOSTS.items():
            response = await asyncio.to_thread(send, url, CONTROL[0], {"Host": host})
            assert response.status == (200 if allowed else 403), host
            response = await asyncio.to_thread(send, url, Sent("GET", "/local/@connections/a="), {"Host": host})
            assert response.status == 403, host
            assert ("allowed_hosts" in response.body) is not allowed, host
            assert await upgraded(gateway.port, host) == ("101" if allowed else "403"), host
        assert domains == [host for host, allowed in HOSTS.items() if allowed]


async def upgraded(port: int, *hosts: str) -> str:
    """The status of an upgrade request with these values of `Host`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    names = "".join(f"Host: {host}\r\n" for host in hosts)
    writer.write(
        f"GET /local HTTP/1.1\r\n{names}Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    status = (await reader.readline()).split()[1].decode()
    writer.close()
    return status


async def test_a_request_without_one_host_is_rejected() -> None:
    async with Gateway({}) as gateway:
        assert not (await upgraded(gateway.port)).startswith("10")
        assert not (await upgraded(gateway.port, "localhost", "evil.example")).startswith("10")


async def test_a_gateway_on_all_addresses_needs_the_names_by_which_it_is_addressed() -> None:
    async with Gateway({}, host="0.0.0.0") as gateway:  # noqa: S104
        assert await upgraded(gateway.port, f"localhost:{gateway.port}") == "101"
        assert await upgraded(gateway.port, f"0.0.0.0:{gateway.port}") == "101"
        assert await upgraded(gateway.port, "gateway") == "403"


async def test_web_socket_clients_can_be_limited_to_origins() -> None:
    ours, other = websockets.Origin("http://localhost:3000"), websockets.Origin("https://evil.example")
    async with Gateway({}, allowed_origins=(ours,)) as gateway:
        async with websockets.connect(gateway.url, origin=ours), websockets.connect(gateway.url):
            assert len(gateway.connections) == 2
        with pytest.raises(websockets.InvalidStatus) as rejected:
            async with websockets.connect(gateway.url, origin=other):
                pass
        assert rejected.value.response.status_code == 403
        assert gateway.counters.connects[403] == 1
    async with Gateway({}) as gateway, websockets.connect(gateway.url, origin=other):
        assert len(gateway.connections) == 1


def test_with_lambda_enabled_functions_can_be_listed_with_the_secret_only() -> None:
    """A control for the other tests: calls that they see rejected do have an effect when the SDK signs them."""
    with Ministack.start(services=("lambda",)) as ministack:
        session = boto3.session.Session(
            aws_access_key_id="local", aws_secret_access_key=CREDENTIALS.secret_access_key, region_name=REGION
        )
        client = session.client("lambda", endpoint_url=ministack.url)
        assert client.list_functions()["Functions"] == []
        for headers in PAGES.values():
            assert_rejected(send(ministack.url, ATTEMPTS["create a function"], headers))
        assert client.list_functions()["Functions"] == []
        client.close()
