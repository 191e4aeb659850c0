"""Try the installed package: `python -I smoke.py [EXTRA …]`, in an environment that has the wheel with these extras.

Each module must be importable, or name in its error an extra that is missing; and each extra does once what it is for.
Nothing outside this machine is called. Imports only the standard library and the package.
"""

import asyncio
import hashlib
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Final

PARTS: Final = {
    "gatecast.cli": "cli",
    "gatecast.client": "client",
    "gatecast.dead_letter_queue": "aws",
    "gatecast.emulator": "emulator",
    "gatecast.rooms": "aws",
}
"""The extra that a module or subpackage needs. All others are importable without any."""
NOT_IMPORTED: Final = ("gatecast.emulator.pytest_plugin", "gatecast.emulator.__main__")
"""It needs pytest; it is a program."""


class Peer(BaseHTTPRequestHandler):
    """Stands in for SQS and for a collector of traces: accepts everything, and keeps the messages' bodies."""

    bodies: ClassVar[list[str]] = []
    paths: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.paths.append(self.path)
        response = b"{}"
        if self.headers.get("x-amz-target") == "AmazonSQS.SendMessage":
            text = json.loads(body)["MessageBody"]
            self.bodies.append(text)
            digest = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
            response = json.dumps({"MessageId": "1", "MD5OfMessageBody": digest}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/x-amz-json-1.0")
        self.send_header("content-length", str(len(response)))
        self.end_headers()
        self.wfile.write(response)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def peer() -> Iterator[str]:
    """Its address. Afterwards, the SDK's variables point to it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Peer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    os.environ.update({
        "AWS_ENDPOINT_URL": url, "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    })  # fmt: skip
    try:
        yield url
    finally:
        server.shutdown()
        server.server_close()


def check_modules(extras: set[str]) -> None:
    """Import every module of the package."""
    import gatecast

    assert Path(gatecast.__file__).is_relative_to(sys.prefix), f"{gatecast.__file__} is not the installed package"
    assert Path(gatecast.__file__).with_name("py.typed").is_file()
    for part in ("routes", "worker", "local", "deploy", "tests", "bench"):
        assert importlib.util.find_spec(part) is None, f"{part} is installed, too"
    for each in pkgutil.walk_packages(gatecast.__path__, "gatecast.", onerror=lambda _: None):
        extra = next((extra for part, extra in PARTS.items() if f"{each.name}.".startswith(f"{part}.")), None)
        if (extra is None or extra in extras) and each.name not in NOT_IMPORTED:
            importlib.import_module(each.name)


def only_the_package() -> None:
    from gatecast import Broadcast, Publisher, decode

    sent: list[str] = []
    sqs = type("Sqs", (), {"send_message": lambda _, **message: sent.append(message["MessageBody"])})()
    Publisher(sqs, "https://sqs/queue").publish(Broadcast(id="1", room="lobby", data="hello"))
    assert [decode(each).data for each in sent] == ["hello"]


def aws(url: str) -> None:
    import boto3

    from gatecast import Publisher

    Publisher(boto3.client("sqs"), f"{url}/1/queue").publish(room="lobby", json={"from": "boto3"})
    check_last("boto3")


def asynchronous(url: str) -> None:
    import aioboto3

    from gatecast import AsyncPublisher

    async def publish() -> None:
        async with aioboto3.Session().client("sqs") as sqs:
            await AsyncPublisher(sqs, f"{url}/1/queue").publish(room="lobby", json={"from": "aioboto3"})

    asyncio.run(publish())
    check_last("aioboto3")


def cli(url: str) -> None:
    program = Path(sysconfig.get_path("scripts"), "gatecast")
    os.environ["GATECAST_QUEUE_URL"] = f"{url}/1/queue"
    for arguments in (["--help"], ["--version"], ["publish", "lobby", '{"from": "cli"}', "--json"]):
        ran = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)  # noqa: S603 - ours
        assert ran.returncode == 0, f"gatecast {arguments}: {ran.stdout}{ran.stderr}"
        assert ran.stdout.strip()
    check_last("cli")


def client(_: str) -> None:
    from websockets.asyncio.server import ServerConnection, serve

    from gatecast.client import connect

    async def server(connection: ServerConnection) -> None:
        async for text in connection:
            request = json.loads(text)
            await connection.send(json.dumps({"type": "ok", **request, "connection": "c="}))

    async def join() -> None:
        async with serve(server, "127.0.0.1", 0, subprotocols=["gatecast.v2"]) as serving:  # type: ignore[list-item]
            port = next(iter(serving.sockets)).getsockname()[1]
            async with asyncio.timeout(30), connect(f"ws://127.0.0.1:{port}/") as connected:
                await connected.join("lobby")

    asyncio.run(join())


def emulator(_: str) -> None:
    from gatecast.emulator import Route
    from gatecast.emulator.testing import WebSocketApi

    def echo(event: dict[str, Any], _context: object) -> dict[str, Any]:
        return {"statusCode": 200, "body": event["body"]}

    with WebSocketApi({"send": Route(echo, response=True)}) as api:
        connected = api.connect()
        connected.send({"action": "send", "text": "hello"})
        assert json.loads(connected.receive())["text"] == "hello"


def otel(url: str) -> None:
    from gatecast import tracing

    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = url
    assert tracing.enable("smoke")
    with tracing.publishing():
        assert tracing.message_attributes()["traceparent"]
    tracing.flush()
    assert "/v1/traces" in Peer.paths


def check_last(sender: str) -> None:
    """The last message that arrived has this payload."""
    from gatecast import decode

    assert json.loads(bytes(decode(Peer.bodies[-1]).json or b"")) == {"from": sender}


TRIED: Final[Mapping[str, Callable[[str], None]]] = {
    "aws": aws,
    "async": asynchronous,
    "cli": cli,
    "client": client,
    "emulator": emulator,
    "otel": otel,
}
"""What each extra is for; the argument is the peer's address."""


def main() -> None:
    extras = set(sys.argv[1:])
    check_modules(extras)
    only_the_package()
    with peer() as url:
        for extra in sorted(extras):
            TRIED[extra](url)


if __name__ == "__main__":
    main()
