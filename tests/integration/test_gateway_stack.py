"""The composed stack: gateway, routes, ministack and worker, in one process and in several."""

import asyncio
import json
import os
import re
import signal
import socket
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import websockets

from gatecast.emulator.faults import THROTTLED, Rule
from gatecast.emulator.limits import Limits
from local.backend import Backend, environment, prepare_backend
from local.gateway_process import GatewayProcess
from local.ministack import Ministack
from local.processes import Process
from local.stack import Stack
from local.worker_process import ROOT
from tests.gateway_doubles import close_code, send_request, until


@pytest.fixture
def backend(ministack: Ministack, unique_name: str) -> Backend:
    return prepare_backend(ministack, table=unique_name, queue=unique_name)


async def joined(url: str, room: str) -> websockets.ClientConnection:
    client = await websockets.connect(url)
    assert (await send_request(client, action="join", room=room))["type"] == "ok"
    return client


def listens(address: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", urlsplit(address).port or 0)) == 0


async def received(client: websockets.ClientConnection) -> Any:
    """The next message that is not a response to this client's own request."""
    while True:
        text = await client.recv()
        if '"type"' not in str(text):
            return text


@pytest.mark.parametrize("fifo", [False, True])
async def test_published_message_reaches_all_members_of_the_room(
    ministack: Ministack, unique_name: str, fifo: bool
) -> None:
    before = dict(os.environ)
    base = prepare_backend(ministack, table=unique_name, queue=unique_name, fifo=fifo)
    async with Stack.running(on=base) as stack:
        members = [await joined(stack.gateway.url, "lobby") for _ in range(5)]
        stranger = await joined(stack.gateway.url, "elsewhere")
        await members[0].send(json.dumps({"action": "publish", "room": "lobby", "data": "hello"}))
        assert [await received(member) for member in members] == ["hello"] * 5
        assert stack.gateway.counters.posts == {200: 5}
        await until(lambda: stack.workers[0].metric("gatecast_deliveries_total", outcome="delivered") == 5)
        for client in (*members, stranger):
            await client.close()
        codes = await stack.stop_workers()
    assert codes == [0]
    assert dict(os.environ) == before


async def test_a_worker_can_be_killed_and_replaced(backend: Backend) -> None:
    settings = {"GATECAST_VISIBILITY_SECONDS": "5"}  # the killed one's long poll may still take the message
    async with Stack.running(on=backend, worker_settings=settings) as stack:
        client = await joined(stack.gateway.url, "lobby")
        assert stack.workers[0].process.kill() == -signal.SIGKILL
        await client.send(json.dumps({"action": "publish", "room": "lobby", "data": "for the next one"}))
        stack.start_worker(settings)
        await stack.ready()
        assert await received(client) == "for the next one"
        await client.close()


async def test_the_gateway_runs_in_a_process_of_its_own(backend: Backend, tmp_path: Path) -> None:
    limits = Limits(frame_bytes=1_000)
    with GatewayProcess.start(backend.environment(), log=tmp_path / "log", limits=limits) as gateway:
        client = await joined(f"{gateway.url}?client=7", "lobby")
        (connection_id,) = connections = await asyncio.to_thread(gateway.connections)
        assert connections == {connection_id: {"client": "7"}}
        assert (await asyncio.to_thread(gateway.counters))["routes"] == {"$connect": 1, "join": 1}
        gateway.replace_faults([Rule(fault=THROTTLED)])
        assert await asyncio.to_thread(gateway.drop, [connection_id]) == 1
        assert await close_code(client) == 1006
        other = await websockets.connect(gateway.url)
        await other.send("x" * 1_001)
        assert await close_code(other) == 1009
    assert gateway.process.exit_code == 0


def test_environment_is_replaced_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.setenv("OTHER", "kept")
    with environment({"AWS_REGION": "us-east-1"}):
        assert "AWS_PROFILE" not in os.environ
        assert (os.environ["AWS_REGION"], os.environ["OTHER"]) == ("us-east-1", "kept")
    assert os.environ["AWS_PROFILE"] == "mine"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_command_serves_until_it_is_stopped(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "local", "--workers", "1", "--port", "0"]
    with Process.start(command, environment=os.environ, log=tmp_path / "log", directory=ROOT) as stack:

        def text() -> str:
            assert stack.exit_code is None, stack.log_tail()
            return stack.log.read_text()

        await until(lambda: "GATECAST_CONNECTIONS_ENDPOINT" in text())
        url, aws, metrics = (
            re.findall(pattern, text())[0]
            for pattern in (r"ws://\S+", r"AWS_ENDPOINT_URL_DYNAMODB=(\S+)", r"http://\S+(?=/metrics)")
        )
        client = await joined(url, "lobby")
        await client.send(json.dumps({"action": "publish", "room": "lobby", "data": "hello"}))
        assert await received(client) == "hello"
        os.kill(stack.pid, number)
        assert await asyncio.to_thread(stack.wait, 60) == 0
        assert await close_code(client) == 1006
    for address in (url, aws, metrics):
        assert not listens(address)
