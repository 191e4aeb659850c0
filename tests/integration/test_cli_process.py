"""`gatecast` as a process: how it starts, how Ctrl-C ends it, and what it needs."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import AsyncIterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from gatecast import Broadcast, __version__, encode
from local.ministack import Ministack
from local.resources import Queues
from tests.chaos.service_proxy import Hang, ServiceProxy
from tests.queues import dead_letters
from tests.worker_process import eventually

CHECKOUT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "gatecast.cli")
PLAIN = {"PATH": os.environ["PATH"], "COLUMNS": "100"}


def run(*arguments: str, environment: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, *arguments], cwd=CHECKOUT, env={**PLAIN, **(environment or {})}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def run_code(code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments], cwd=CHECKOUT, env=PLAIN, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


async def start(*arguments: str, environment: Mapping[str, str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, cwd=CHECKOUT, env={**PLAIN, **environment}, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


def test_the_wheel_installs_this_program() -> None:
    scripts = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["gatecast"].partition(":")
    assert callable(getattr(import_module(module), name))


def test_without_a_command_it_prints_its_help() -> None:
    done = run()
    assert done.returncode == 2
    for command in ("publish", "room", "rooms", "tail", "kick", "dead-letters", "top", "doctor", "emulator"):
        assert f"\n  {command} " in done.stdout
    assert run("--version").stdout == f"gatecast {__version__}\n"


def test_it_imports_only_what_the_command_needs() -> None:
    code = """
        import sys
        from gatecast.cli.__main__ import invoke
        invoke(["room", "a b"])
        print([name for name in ("aiohttp", "boto3", "botocore", "rich", "websockets", "yaml") if name in sys.modules])
    """
    assert run_code(code).stdout == "[]\n"


@pytest.mark.parametrize("missing", ["typer", "boto3"])
def test_a_missing_extra_is_named(missing: str) -> None:
    code = f"""
        import sys
        sys.modules[{missing!r}] = None
        from gatecast.cli.__main__ import main
        sys.exit(main())
    """
    environment = "import os; os.environ['GATECAST_TABLE'] = 'gatecast'\n"
    done = run_code(environment + textwrap.dedent(code), "room", "lobby")
    assert done.returncode == 1
    assert done.stderr == f"gatecast: {missing} is not installed: install gatecast with its extra, gatecast[cli]\n"


def test_a_terminal_without_unicode_is_no_error() -> None:
    code = """
        import sys
        from gatecast.cli import __main__ as program, output
        sys.stdout.reconfigure(encoding="ascii")
        program.invoke = lambda _: output.write("é")
        sys.exit(program.main())
    """
    done = run_code(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\xe9\n", "")


def test_the_emulator_has_its_own_options() -> None:
    done = run("emulator", "--help")
    assert done.returncode == 0
    assert "--template" in done.stdout
    done = run("emulator", "--config", "nowhere.toml")
    assert done.returncode == 2
    assert "nowhere.toml" in done.stderr


def test_shells_complete_commands_and_options() -> None:
    def completed(words: str) -> list[str]:
        variables = {"_GATECAST_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        return run(environment=variables).stdout.split()

    assert completed("gatecast p") == ["publish"]
    assert completed("gatecast dead-letters ") == ["list", "show", "redrive", "drop"]
    assert completed("gatecast room --o") == ["--output"]
    assert completed("gatecast room --output ") == ["text", "json"]
    assert "complete_bash" in run("--show-completion", "bash").stdout


@pytest.mark.parametrize("imported", ["gatecast.cli.app", "typer", "boto3", "botocore.config"])
def test_ctrl_c_while_it_starts_is_one_line(imported: str) -> None:
    code = f"""
        import os, signal, sys
        class Interrupting:
            def find_spec(self, name, *_):
                if name == {imported!r}:
                    os.kill(os.getpid(), signal.SIGINT)
        sys.meta_path.insert(0, Interrupting())
        os.environ.update(GATECAST_TABLE="gatecast", AWS_REGION="us-east-1")
        from gatecast.cli.__main__ import main
        sys.exit(main())
    """
    done = run_code(code, "room", "lobby")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "gatecast: interrupted\n")


@pytest.fixture
async def proxy(
    ministack: Ministack, aws: dict[str, str], queues: Queues, table: str, environment: dict[str, str]
) -> AsyncIterator[ServiceProxy]:
    """Between the command and ministack; `environment` is the command's."""
    async with ServiceProxy.serving(ministack.url) as running:
        environment.update({
            **aws,
            **running.environment(),
            "GATECAST_QUEUE_URL": queues.url,
            "GATECAST_DEAD_LETTER_QUEUE_URL": queues.dead_letter_url,
            "GATECAST_TABLE": table,
        })  # fmt: skip
        yield running


@pytest.fixture
def environment() -> dict[str, str]:
    return {}


async def interrupted(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    process.send_signal(signal.SIGINT)
    _, errors = await process.communicate()
    return process.returncode, errors.decode()


def put(sqs: Any, queues: Queues, count: int) -> None:
    reason = {"reason": {"DataType": "String", "StringValue": "undelivered"}}
    for number in range(count):
        body = encode(Broadcast(id=f"b{number}", connections=("c=",), data="x"))
        sqs.send_message(QueueUrl=queues.dead_letter_url, MessageBody=body, MessageAttributes=reason)


@pytest.mark.parametrize("command", [["list"], ["redrive", "--dry-run"], ["drop", "--reason", "other", "--yes"]])
async def test_ctrl_c_while_dead_letters_are_read_releases_them(
    proxy: ServiceProxy, environment: dict[str, str], sqs: Any, queues: Queues, command: list[str]
) -> None:
    put(sqs, queues, 12)
    proxy.fault = lambda called: Hang(60) if called == "ReceiveMessage" and proxy.calls[called] > 1 else None
    process = await start("dead-letters", *command, environment=environment)
    await eventually(lambda: proxy.calls["ReceiveMessage"] >= 2)
    code, errors = await interrupted(process)
    assert (code, errors) == (130, "gatecast: interrupted: it is safe to run it again\n")
    assert len(dead_letters(sqs, queues.dead_letter_url)) == 12


async def test_ctrl_c_during_a_redrive_finishes_what_has_begun_and_says_what_was_done(
    proxy: ServiceProxy, environment: dict[str, str], sqs: Any, queues: Queues
) -> None:
    put(sqs, queues, 3)
    proxy.fault = lambda called: Hang(1) if called == "SendMessage" and proxy.calls[called] == 3 else None
    process = await start("dead-letters", "redrive", environment=environment)
    await eventually(lambda: proxy.calls["SendMessage"] >= 3 and proxy.calls["DeleteMessage"] >= 2)
    process.send_signal(signal.SIGINT)
    out, errors = await process.communicate()
    assert process.returncode == 130
    assert errors.decode() == "gatecast: interrupted: it is safe to run it again\n"
    resent = int(out.decode().splitlines()[-2].split()[0])
    assert resent == 3 - len(dead_letters(sqs, queues.dead_letter_url))


async def test_ctrl_c_while_a_room_is_read(proxy: ServiceProxy, environment: dict[str, str]) -> None:
    proxy.fault = lambda called: Hang(60) if called == "Query" else None
    process = await start("room", "lobby", environment=environment)
    await eventually(lambda: bool(proxy.calls["Query"]))
    assert await interrupted(process) == (130, "gatecast: interrupted\n")


@pytest.mark.usefixtures("proxy")
async def test_ctrl_c_between_the_two_steps_of_growing(environment: dict[str, str], dynamodb: Any, table: str) -> None:
    process = await start("rooms", "grow", "lobby", "--shards", "4", "--yes", environment=environment)
    assert process.stderr is not None
    assert (await process.stderr.readline()).startswith(b"waiting 60 s")
    code, errors = await interrupted(process)
    assert code == 130
    assert errors == (
        "gatecast: lobby is read in 4 shards, but new members may still join 1: that does no harm; "
        "run the same command again to finish\n"
    )
    [item] = dynamodb.scan(TableName=table)["Items"]
    assert item["shards"] == {"N": "4"}
    assert "join_shards" not in item


async def test_ctrl_c_ends_a_tail_that_has_no_connection_yet() -> None:
    process = await start("tail", "lobby", "ws://127.0.0.1:1", environment={})
    assert process.stderr is not None
    assert b"no connection" in await process.stderr.readline()
    code, errors = await interrupted(process)
    assert code == 0
    assert all(line.startswith("no connection") for line in errors.splitlines())


@pytest.mark.parametrize("arguments", [["--help"], ["rooms", "set", "lobby", "presence=1", "--dry-run"]])
def test_a_reader_that_has_ended_is_no_error_of_its_own(aws: dict[str, str], table: str, arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*COMMAND, *arguments], cwd=CHECKOUT, env={**PLAIN, **aws, "GATECAST_TABLE": table}, stdout=writer,
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
