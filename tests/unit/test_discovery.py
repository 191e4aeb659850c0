"""Commands find the local stack that runs in the same checkout, and no other."""

import shlex
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from local.attach import command
from local.discovery import RunningStack, announced, find

ROOT = Path(__file__).parents[2]
STACK = RunningStack({"GATECAST_QUEUE_URL": "http://127.0.0.1:1/q", "AWS_REGION": "us-east-1"}, ("127.0.0.1:1234",))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "made" / "stack.json"


def test_a_stack_is_found_while_it_runs(file: Path) -> None:
    assert find(file) is None
    with announced(STACK, file):
        assert find(file) == STACK
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert find(file) is None
    assert not file.read_bytes(), "credentials of a run that ended stay on disk"


def test_of_two_stacks_the_first_is_found(file: Path) -> None:
    second = RunningStack({}, ())
    with announced(STACK, file):
        with announced(second, file):
            assert find(file) == STACK
        assert find(file) == STACK


def test_a_stack_that_was_killed_is_not_found(file: Path) -> None:
    program = textwrap.dedent(
        f"""
        import os, signal
        from pathlib import Path
        from local.discovery import RunningStack, announced
        with announced(RunningStack({{}}, ()), Path({str(file)!r})):
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    killed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
    assert killed.returncode == -9
    assert file.read_bytes()
    assert find(file) is None


def test_exports_can_be_pasted_into_a_shell() -> None:
    value = """it's $HOME; `id` "x" \\ y"""
    exports = RunningStack({"GATECAST_TABLE": value}, ()).exports()
    shell = subprocess.run(
        ["bash", "-c", f'{exports}\nprintf %s "$GATECAST_TABLE"'], capture_output=True, text=True, check=True
    )
    assert shell.stdout == value
    assert shlex.split(exports) == ["export", f"GATECAST_TABLE={value}"]


def test_commands_use_the_stack_unless_another_one_is_named() -> None:
    its = dict(STACK.environment)
    assert command(["top"], {}, STACK) == (["gatecast.cli", "top", "127.0.0.1:1234"], its)
    assert command(["top", "10.0.0.1:9090"], {}, STACK) == (["gatecast.cli", "top", "10.0.0.1:9090"], its)
    for options in (["--once"], ["--output", "json"], ["--output=json", "--interval", "2", "--svg", "a.svg"]):
        own = ["gatecast.cli", "top", *options]
        assert command(["top", *options], {}, STACK) == ([*own, "127.0.0.1:1234"], its)
        assert command(["top", *options, "10.0.0.1:9090"], {}, STACK) == ([*own, "10.0.0.1:9090"], its)
    assert command(["top"], {}, None) == (["gatecast.cli", "top"], {})
    mine = {"GATECAST_QUEUE_URL": "https://mine"}
    redrive = ["dead-letters", "redrive", "--dry-run"]
    assert command(redrive, mine, STACK) == (["gatecast.cli", *redrive], mine)
    assert command(redrive, {}, None) == (["gatecast.cli", *redrive], {})
    assert command(["room", "lobby"], {"HOME": "/"}, STACK) == (["gatecast.cli", "room", "lobby"], {"HOME": "/", **its})
