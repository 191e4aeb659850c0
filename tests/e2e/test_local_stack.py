"""`make local` as a newcomer uses it: the page, a token, the printed variables, the README's own snippets."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import websockets
from websockets.sync.client import connect

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


class Running(NamedTuple):
    process: "subprocess.Popen[str]"
    shown: str

    @property
    def page(self) -> str:
        return self._after("in a browser")

    @property
    def url(self) -> str:
        return self._after("WebSocket clients")

    def _after(self, label: str) -> str:
        found = re.search(rf"{label} +(\S+)", self.shown)
        assert found, self.shown
        return found[1]

    def shell(self, command: str, folder: Path = ROOT, programs: Path = Path(sys.executable).parent) -> str:
        """The output of a shell into which the printed lines were pasted."""
        exports = "\n".join(re.findall(r"^export .*$", self.shown, re.MULTILINE))
        return shell(f"{exports}\n{command}", folder, programs)


def shell(commands: str, folder: Path, programs: Path) -> str:
    """The output of a shell in this folder that finds programs in `programs` first, and has no other variables."""
    environment = {"PATH": f"{programs}:{os.environ['PATH']}"}
    ran = subprocess.run(
        ["bash", "-eu", "-c", commands], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@contextmanager
def local_stack(*arguments: str, **variables: str) -> Iterator[Running]:
    process = subprocess.Popen(
        [sys.executable, "-m", "local", "--port", "0", *arguments],
        cwd=ROOT,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            assert process.stdout
            shown = ""
            while "GATECAST_CONNECTIONS_ENDPOINT" not in shown:
                line = process.stdout.readline()
                assert line, shown
                shown += line
            yield Running(process, shown)
            process.send_signal(signal.SIGINT)
            assert process.wait() == 0
        finally:
            process.kill()


def snippet(language: str, containing: str) -> str:
    blocks = re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if containing in block]
    return str(found)


@pytest.fixture(scope="module")
def stack() -> Iterator[Running]:
    with local_stack() as running:
        yield running


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment in which only what the README says was installed."""
    folder = tmp_path_factory.mktemp("newcomer")
    venv.create(folder / "environment", with_pip=True)
    programs = folder / "environment/bin"
    shell(snippet("sh", "checkout[").replace("/path/to/the/checkout", str(ROOT)), folder, programs)
    return programs


@pytest.mark.timeout(300)  # it installs packages
def test_the_readme_s_publisher_works_as_it_stands_and_twice(stack: Running, installed: Path, tmp_path: Path) -> None:
    program = snippet("python", "Publisher(")
    with connect(stack.url) as client:
        client.send('{"action":"join","room":"lobby"}')
        assert json.loads(client.recv(10))["type"] == "ok"
        for _ in range(2):
            stack.shell(f"python - <<'END'\n{program}\nEND", tmp_path, installed)
        assert [client.recv(10), client.recv(10)] == ['{"price":12.5}'] * 2


@pytest.mark.timeout(300)
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_readme_s_commands_publish_and_print(stack: Running, installed: Path, tmp_path: Path) -> None:
    published, _, tail = snippet("sh", "gatecast tail").rstrip().rpartition("\n")
    tail = tail.replace("ws://127.0.0.1:4510/local", f"{stack.url} --count 2")
    commands = f"{tail} 2>joined & until grep -q ^joined joined; do sleep 0.1; done\n{published}\nwait $!"
    shown = stack.shell(commands, tmp_path, installed)
    assert len(re.findall(r'\{"price": ?12\.5\}$', shown, re.MULTILINE)) == 2, shown


def test_the_readme_s_requests_all_succeed(stack: Running) -> None:
    with connect(stack.url) as client:
        for line in snippet("json", '"action": "join"').splitlines():
            client.send(line)
            received = [str(client.recv(10))]
            while not received[-1].startswith("{"):  # what was published arrives before or after the response
                received.append(str(client.recv(10)))
            assert json.loads(received[-1])["type"] == "ok", line


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_command_of_the_http_reference_publishes(stack: Running) -> None:
    document = (ROOT / "docs/reference-http.md").read_text()
    (command,) = re.findall(r"^```sh\n(curl .*?)^```", document, re.MULTILINE | re.DOTALL)
    with connect(stack.url) as client:
        client.send('{"action":"join","room":"ticker"}')
        assert json.loads(client.recv(10))["type"] == "ok"
        assert json.loads(stack.shell(command)) == {"id": "price-4711"}
        assert client.recv(10) == '{"price": 12.5}'


@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
def test_the_readme_s_javascript_joins_and_then_publishes(stack: Running) -> None:
    flag = "--experimental-websocket"
    allowed = subprocess.run(["node", flag, "-e", ""], capture_output=True, check=False).returncode == 0
    program = snippet("js", "new WebSocket").replace("ws://127.0.0.1:4510/local", stack.url)
    program = (
        f"{program}\nsocket.addEventListener('message', ({{data}}) => {{ if (data === 'hello') process.exit(); }});"
    )
    ran = subprocess.run(
        ["node", *([flag] if allowed else []), "-e", program], capture_output=True, text=True, check=False, timeout=30
    )
    if "WebSocket is not defined" in ran.stderr:
        pytest.skip("this Node has no WebSocket")
    assert ran.returncode == 0, ran.stderr
    assert '"action":"join"' in ran.stdout
    assert "hello" in ran.stdout.splitlines()


def test_the_page_may_connect_only_to_its_own_address(stack: Running) -> None:
    with urllib.request.urlopen(stack.page, timeout=5) as response:  # noqa: S310 - http, on the loopback address
        assert "<title>Gatecast on this machine</title>" in response.read().decode()
        policy = response.headers["Content-Security-Policy"]
        assert f"connect-src ws://{stack.page.split('/')[2]};" in policy
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
        assert "Access-Control-Allow-Origin" not in response.headers
    for name in re.findall(r'(?:src|href)="([^"]+)"', (ROOT / "local/page/index.html").read_text()):
        with urllib.request.urlopen(f"{stack.page}{name}", timeout=5) as response:  # noqa: S310
            assert response.status == 200
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(urllib.request.Request(stack.page, headers={"Host": "evil.example"}), timeout=5)  # noqa: S310


async def test_the_page_s_own_origin_may_connect(stack: Running) -> None:
    async with websockets.connect(stack.url, origin=websockets.Origin(stack.page.rstrip("/"))) as client:
        await client.send('{"action":"join","room":"lobby"}')
        assert json.loads(await asyncio.wait_for(client.recv(), 10))["type"] == "ok"


def test_with_an_authorizer_clients_need_a_token_of_make_token() -> None:
    with local_stack("--authorizer", "required") as stack:
        with pytest.raises(websockets.InvalidStatus, match="401"):
            connect(stack.url)
        token = stack.shell("python -m local.token alice 'chat/*'").strip()
        with connect(f"{stack.url}?token={token}") as client:
            for room, kind in (("chat/1", "ok"), ("lobby", "error")):
                client.send(json.dumps({"action": "join", "room": room}))
                assert json.loads(client.recv(10))["type"] == kind
        assert token not in stack.shown
        assert (ROOT / ".local/token-secret").read_text() not in stack.shown


def test_variables_of_the_routes_take_effect() -> None:
    with local_stack(GATECAST_JOINS_PER_SECOND="1") as stack, connect(stack.url) as client:
        codes = []
        for _ in range(30):
            client.send('{"action":"join","room":"lobby"}')
            codes.append(json.loads(client.recv(10)).get("code"))
        assert "rate_limited" in codes


def test_history_and_presence_can_be_switched_on_for_all_rooms() -> None:
    with local_stack("--history-seconds", "60", "--presence", "10") as stack, connect(stack.url) as client:
        client.send('{"action":"join","room":"lobby","frames":2}')
        joined = json.loads(client.recv(10))
        client.send('{"action":"publish","room":"lobby","data":"hello"}')
        (frame,) = (each for each in (json.loads(client.recv(10)) for _ in range(2)) if each["type"] == "messages")
        assert [each["offset"] for each in frame["messages"]] == [joined["offset"] + 1]
        client.send('{"action":"members","room":"lobby"}')
        assert json.loads(client.recv(10))["users"] == []  # without an authorizer, users are not known
        client.send('{"action":"ping","ref":1}')
        assert json.loads(client.recv(10)) == {"type": "pong", "ref": 1}


def test_a_port_that_is_taken_is_named_with_the_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = subprocess.run(
            [sys.executable, "-m", "local", "--port", str(port)], cwd=ROOT, capture_output=True, text=True, check=False
        )
    assert ran.returncode == 1
    assert f"port {port} is in use" in ran.stdout
    assert f"make local PORT={port + 1}" in ran.stdout
