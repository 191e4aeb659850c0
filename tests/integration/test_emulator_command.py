"""`python -m gatecast.emulator` as a process: with a SAM template, with a TOML file, and with mistakes in them."""

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import websockets
from websockets.typing import Origin

from gatecast.emulator import main
from local.processes import Process
from tests.gateway_doubles import until

CHECKOUT = Path(__file__).parents[2]
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
    "PYTHONPATH": str(CHECKOUT),
    "PYTHONDONTWRITEBYTECODE": "1",
}


def run(directory: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "gatecast.emulator", *options]
    return subprocess.run(
        command, cwd=directory, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False
    )


@asynccontextmanager
async def serving(directory: Path, *options: str) -> AsyncIterator[tuple[Process, str]]:
    """A running emulator and the URL for its clients."""
    command = [sys.executable, "-m", "gatecast.emulator", "--port", "0", *options]
    with Process.start(command, environment=ENVIRONMENT, log=directory / "log", directory=directory) as process:

        def url() -> str:
            assert process.exit_code is None, process.log_tail()
            found = re.search(r"^clients +(ws://\S+)$", process.log.read_text(), re.MULTILINE)
            return found[1] if found else ""

        await until(lambda: bool(url()))
        yield process, url()


@contextmanager
def invoke_api(directory: Path, **files: Path) -> Iterator[str]:
    """Functions in Node behind an Invoke API, and its endpoint."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node")
    functions = [f"{name}={path}" for name, path in files.items()]
    command = [node, str(CHECKOUT / "tests" / "invoke_api.mjs"), *functions]
    log = directory / "invoke-api.log"
    with Process.start(command, environment={"PATH": os.environ["PATH"]}, log=log) as process:
        while not (port := log.read_text().strip()):
            assert process.exit_code is None, process.log_tail()
        yield f"http://127.0.0.1:{port}"


async def request(client: websockets.ClientConnection, **fields: Any) -> Any:
    await client.send(json.dumps(fields))
    return json.loads(await asyncio.wait_for(client.recv(), 20))


TEMPLATE = """
Transform: AWS::Serverless-2016-10-31
Globals:
  Function:
    Runtime: python3.13
    Handler: app.handler
    Environment: { Variables: { CALLBACK: !Sub "https://${Api}.execute-api.${AWS::Region}.amazonaws.com/${Stage}" } }
Resources:
  Api:
    Type: AWS::ApiGatewayV2::Api
    Properties: { Name: chat, ProtocolType: WEBSOCKET, RouteSelectionExpression: $request.body.action }
  Stage: { Type: AWS::ApiGatewayV2::Stage, Properties: { ApiId: !Ref Api, StageName: prod } }
  OnConnect: { Type: AWS::Serverless::Function, Properties: { CodeUri: connect/ } }
  Where: { Type: AWS::Serverless::Function, Properties: { CodeUri: where/ } }
  Shout:
    Type: AWS::Serverless::Function
    Properties: { CodeUri: shout/, Handler: index.handler, Runtime: nodejs22.x }
"""
ROUTE = """
  {function}Route:
    Type: AWS::ApiGatewayV2::Route
    Properties: {{ ApiId: !Ref Api, RouteKey: {key}, Target: !Sub "integrations/${{{function}Integration}}" }}
  {function}Integration:
    Type: AWS::ApiGatewayV2::Integration
    Properties:
      ApiId: !Ref Api
      IntegrationType: AWS_PROXY
      IntegrationUri: !Sub
        - arn:aws:apigateway:${{AWS::Region}}:lambda:path/2015-03-31/functions/${{Arn}}/invocations
        - Arn: !GetAtt {function}.Arn
"""
RESPONSE = """
  {function}Response:
    Type: AWS::ApiGatewayV2::RouteResponse
    Properties: {{ ApiId: !Ref Api, RouteId: !Ref {function}Route, RouteResponseKey: $default }}
"""
CONNECT = """
def handler(event, context):
    user = (event.get("queryStringParameters") or {}).get("user")
    return {"statusCode": 200 if user else 403}
"""
WHERE = """
import json
import os


def handler(event, context):
    context = event["requestContext"]
    seen = {"connection": context["connectionId"], "stage": context["stage"], "callback": os.environ["CALLBACK"]}
    return {"statusCode": 200, "body": json.dumps(seen)}
"""
SHOUT = """
exports.handler = async (event) => {
  const { text } = JSON.parse(event.body);
  if (!text) throw new Error("nothing to shout");
  return { statusCode: 200, body: JSON.stringify({ text: text.toUpperCase(), of: event.requestContext.routeKey }) };
};
"""


async def test_a_sam_template_with_functions_in_python_and_node_runs(tmp_path: Path) -> None:
    for folder, name, text in (
        ("connect", "app.py", CONNECT),
        ("where", "app.py", WHERE),
        ("shout", "index.js", SHOUT),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(text)
    template = TEMPLATE + ROUTE.format(function="OnConnect", key="$connect")
    for name in ("Where", "Shout"):
        template += (ROUTE + RESPONSE).format(function=name, key=name.lower())
    (tmp_path / "template.yaml").write_text(template)
    with invoke_api(tmp_path, Shout=tmp_path / "shout" / "index.js") as endpoint:
        async with serving(tmp_path, "--template", "template.yaml", "--invoke-endpoint", endpoint) as (process, url):
            assert url.endswith("/prod")
            with pytest.raises(websockets.InvalidStatus) as rejected:
                await websockets.connect(url)
            assert rejected.value.response.status_code == 403
            async with websockets.connect(f"{url}?user=ann") as client:
                where = await request(client, action="where")
                assert where["stage"] == "prod"
                assert where["callback"] == url.replace("ws://", "http://")
                assert await request(client, action="shout", text="hi") == {"text": "HI", "of": "shout"}
                failed = await request(client, action="shout")
                assert failed["message"] == "Internal server error"
                assert failed["connectionId"] == where["connection"]
                unknown = await request(client, action="whisper")
                assert unknown["message"] == "Forbidden"
            process.terminate()
            assert await asyncio.to_thread(process.wait, 30) == 0
    assert "nothing to shout" in process.log.read_text()


async def test_the_document_s_quick_start_works_as_it_stands(tmp_path: Path) -> None:
    for name, language, containing in (
        ("chat.py", "python", "def send(event"),
        ("emulator.toml", "toml", "python:chat.send"),
    ):
        text = (CHECKOUT / "docs" / "emulator.md").read_text()
        blocks = re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        (tmp_path / name).write_text(next(block for block in blocks if containing in block))
    async with (
        serving(tmp_path, "--reload") as (_, url),
        websockets.connect(url) as ann,
        websockets.connect(url) as bob,
    ):
        await ann.send('{"action": "send", "text": "hello"}')
        assert [await asyncio.wait_for(each.recv(), 20) for each in (ann, bob)] == ["hello", "hello"]


ECHO = """
def handler(event, context):
    return {{"statusCode": 200, "body": "{}"}}
"""
CONFIG = '[routes]\necho = { integration = "python:echo.handler", response = true }\n'


async def test_handlers_are_reloaded_while_clients_stay_connected(tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text(ECHO.format("old"))
    (tmp_path / "emulator.toml").write_text(CONFIG)

    async def received(client: websockets.ClientConnection) -> str | bytes:
        await client.send('{"action": "echo"}')
        return await asyncio.wait_for(client.recv(), 20)

    async with serving(tmp_path, "--reload") as (process, url), websockets.connect(url) as client:
        assert await received(client) == "old"
        (tmp_path / "echo.py").write_text(ECHO.format("new"))
        await until(lambda: "handlers.reloaded" in process.log.read_text())
        assert await received(client) == "new"


async def test_only_pages_of_this_machine_may_connect_by_default_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    (tmp_path / "emulator.toml").write_text('[routes]\nping = "mock"\n')
    async with serving(tmp_path) as (process, url):
        for origin in ("http://localhost:3000", "http://127.0.0.1"):
            async with websockets.connect(url, origin=Origin(origin)):
                pass
        for origin in ("https://evil.example", "http://localhost.evil.example", "null"):
            with pytest.raises(websockets.InvalidStatus) as rejected:
                await websockets.connect(url, origin=Origin(origin))
            assert rejected.value.response.status_code == 403
        assert "allowed origins" in process.log.read_text()
        async with websockets.connect(url):
            process.interrupt()
            assert await asyncio.to_thread(process.wait, 30) == 0


def test_a_port_that_is_in_use_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("emulator.toml").write_text('[routes]\nping = "mock"\n')
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--port", str(port)]) == 1
    assert capsys.readouterr() == (
        "",
        f"port {port} is in use on 127.0.0.1: stop the program that has it, or give another --port\n",
    )


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ([], r"there is no emulator\.toml here: give --config FILE or --template FILE"),
        (["--config", "other.toml"], r"other\.toml: it cannot be read: .*"),
        (["--template", "t.yaml"], r"t\.yaml: it cannot be read: .*"),
        (["--config", "ping.toml", "--port", "70000"], r"--port: 70000: expected 0 \(a free port\) to 65535"),
        (["--config", "ping.toml", "--parameter", "A"], r"--parameter: 'A': expected NAME=VALUE"),
        (["--config", "ping.toml", "--api", "A"], r"--api and --parameter have an effect only with --template"),
    ],
)
def test_a_mistake_ends_it_with_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: Sequence[str],
    error: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ping.toml").write_text('[routes]\nping = "mock"\n')
    assert main(options) == 2
    out, err = capsys.readouterr()
    assert re.fullmatch(rf"{error}\n", err), err
    assert out == ""


def test_a_handler_that_is_not_there_ends_it_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "emulator.toml").write_text('[routes]\nsend = "python:chat.send"\n')
    ran = run(tmp_path, "--port", "0")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert re.fullmatch(r"emulator\.toml: \[routes\]: send: 'chat\.send': there is no module chat in .*\n", ran.stderr)


@pytest.mark.parametrize("module", ["aiohttp", "yaml"])
def test_without_the_extra_it_says_what_to_install(tmp_path: Path, module: str) -> None:
    program = f"import sys; sys.modules[{module!r}] = None; from gatecast.emulator import main; sys.exit(main([]))"
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (
        1,
        f"{module} is missing: the emulator needs the extra gatecast[emulator]\n",
    )
