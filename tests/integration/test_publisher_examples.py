"""What docs/reference-publishers.md and the docstrings show for publishers, run as it stands: Python, Node, AWS CLI."""

import asyncio
import doctest
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import boto3
import msgspec
import pytest

from gatecast import Broadcast, decode, queue_message
from local.resources import Queues

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs/reference-publishers.md").read_text()
NODE_LOCK = ROOT / "tests/node/package-lock.json"
WITH_DOCTESTS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "gatecast").rglob("*.py")
    if ">>> " in path.read_text()
)
PRICE = Broadcast(id="price-4711", room="ticker", json=msgspec.Raw(b'{"price": 12.5}'))


def example(language: str, containing: str) -> str:
    """The one code block of the document that contains this text."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if containing in block]
    return str(found)


def received(sqs: Any, url: str) -> list[dict[str, Any]]:
    """All messages that arrive; at least one must."""
    found: list[dict[str, Any]] = []
    while messages := sqs.receive_message(
        QueueUrl=url, MaxNumberOfMessages=10, MessageSystemAttributeNames=["All"]
    ).get("Messages"):
        found += messages
    assert found
    return found


def check_queue_message(message: Mapping[str, Any], broadcast: Broadcast, *, fifo: bool) -> None:
    """Group and deduplication id are the ones that the package would have given the broadcast."""
    expected = queue_message(broadcast, fifo=fifo)
    given = {
        name: value
        for name, value in message["Attributes"].items()
        if name in {"MessageGroupId", "MessageDeduplicationId"}
    }
    assert given == {name: value for name, value in expected.items() if name != "MessageBody"}


# Python


def run_python(code: str, monkeypatch: pytest.MonkeyPatch, **variables: str) -> dict[str, Any]:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/reference-publishers.md", "exec"), names)  # noqa: S102
    return names


def test_the_five_minutes_of_python(sqs: Any, queues: Queues, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_python(example("python", "order-4711-shipped"), monkeypatch, GATECAST_QUEUE_URL=queues.url)
    exec(example("python", "publish_many"), names)  # noqa: S102
    broadcasts = sorted((decode(each["Body"]) for each in received(sqs, queues.url)), key=lambda each: each.room or "")
    assert [each.room for each in broadcasts] == ["@user/ann", "ticker", "ticker/A", "ticker/B"]
    assert broadcasts[0].id == "order-4711-shipped"
    assert names["published"].accepted == ["A-1", "B-1"]


def test_large_payloads_in_python(
    sqs: Any, s3: Any, queues: Queues, payload_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"import os, boto3\nfrom gatecast import Publisher\n{example('python', 'GATECAST_PAYLOAD_BUCKET')}"
    run_python(code, monkeypatch, GATECAST_QUEUE_URL=queues.url, GATECAST_PAYLOAD_BUCKET=payload_bucket)
    (message,) = received(sqs, queues.url)
    reference = decode(message["Body"]).reference
    assert reference
    stored = s3.get_object(Bucket=payload_bucket, Key=reference.key)
    assert (stored["Body"].read(), stored["ContentType"]) == (b"<svg/>", "image/svg+xml")


def test_the_asynchronous_publisher(sqs: Any, queues: Queues, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aioboto3")
    run_python(example("python", "AsyncPublisher"), monkeypatch, GATECAST_QUEUE_URL=queues.url)
    (message,) = received(sqs, queues.url)
    assert decode(message["Body"]).room == "ticker"


@pytest.mark.parametrize("name", WITH_DOCTESTS)
def test_the_examples_in_docstrings(name: str, sqs: Any, queues: Queues, dynamodb: Any, table: str) -> None:
    module = importlib.import_module(name)
    given = {"sqs": sqs, "queue_url": queues.url, "dynamodb": dynamodb, "table_name": table}
    given |= {"asyncio": asyncio, "boto3": boto3}
    if "aioboto3" in (ROOT / name.replace(".", "/")).with_suffix(".py").read_text():
        given["aioboto3"] = pytest.importorskip("aioboto3")
    runner = doctest.DocTestRunner()
    for each in doctest.DocTestFinder().find(module, name, extraglobs=given):
        runner.run(each, clear_globs=False)
    assert runner.summarize(verbose=False).attempted
    assert not runner.failures


def test_the_publishers_and_rooms_have_examples() -> None:
    assert {"gatecast.publisher.publishers", "gatecast.rooms.rooms"} <= set(WITH_DOCTESTS)


# The AWS CLI

AWS_CLI = 'aws() { command aws --endpoint-url "$AWS_ENDPOINT_URL_SQS" "$@"; }\n'
"""As the document says: version 1, which is the one on PyPI, does not read this variable for SQS."""


@pytest.mark.parametrize("fifo", [False, True])
def test_the_command_line_of_aws(
    sqs: Any, queues: Queues, fifo_queues: Queues, aws: dict[str, str], fifo: bool
) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    if shutil.which("aws", path=path) is None:
        pytest.skip("the AWS CLI is not installed")
    url = (fifo_queues if fifo else queues).url
    commands = [
        each for each in re.findall(r"^```sh\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL) if "aws sqs" in each
    ]
    (command,) = [each for each in commands if ("deduplication" in each) is fifo]
    environment = {**os.environ, **aws, "PATH": path, "GATECAST_QUEUE_URL": url, "AWS_PAGER": ""}
    for _ in range(2 if fifo else 1):
        shell = ["bash", "-euo", "pipefail", "-c", AWS_CLI + command]
        ran = subprocess.run(shell, env=environment, check=False, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
    (message,) = received(sqs, url)
    assert decode(message["Body"]) == PRICE
    check_queue_message(message, PRICE, fifo=fifo)


# Node


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """Where Node finds AWS's SDK: installed once per lock, in the checkout. Skips the test if that is not possible."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("Node and npm are not installed")
    folder = ROOT / ".local/tools/node"
    installed = folder / "installed.json"
    if not installed.exists() or installed.read_text() != NODE_LOCK.read_text():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(NODE_LOCK.parent, folder)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if ran.returncode:
            pytest.skip(f"npm could not install AWS's SDK: {ran.stderr.strip().splitlines()[-1:]}")
        shutil.copy(NODE_LOCK, installed)
    return folder


@pytest.mark.parametrize("fifo", [False, True])
def test_the_example_in_node(
    sqs: Any, queues: Queues, fifo_queues: Queues, aws: dict[str, str], node_modules: Path, fifo: bool
) -> None:
    url = (fifo_queues if fifo else queues).url
    requests: list[dict[str, Any]] = [
        {"id": "price-4711", "room": "ticker", "json": {"price": 12.5}},
        {"id": "two", "connections": ["a=", "b="], "json": "ü \ufffe\uffff"},
        {"room": "other/room", "json": None},
    ]
    program = (
        f"{example('js', '@aws-sdk/client-sqs')}\n"
        f"for (const each of {json.dumps(requests)}) console.log(await publish(each));"
    )
    ran = subprocess.run(
        ["node", "--input-type=module", "-e", program],
        cwd=node_modules, env={**os.environ, **aws, "GATECAST_QUEUE_URL": url},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    ids = ran.stdout.split()
    messages = {decode(each["Body"]).id: each for each in received(sqs, url)}
    assert set(messages) == set(ids)
    for message_id, request in zip(ids, requests, strict=True):
        broadcast = decode(messages[message_id]["Body"])
        check_queue_message(messages[message_id], broadcast, fifo=fifo)
        assert isinstance(broadcast.json, msgspec.Raw)
        assert msgspec.json.decode(broadcast.json) == request["json"]
        assert (broadcast.room or None) == request.get("room")
        assert list(broadcast.connections or ()) == request.get("connections", [])
        assert broadcast.published_at_ms
    assert ids[:2] == ["price-4711", "two"]
