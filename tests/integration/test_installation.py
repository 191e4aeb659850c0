"""Installing with make, on a fake Python: what is interrupted is repeated, and what is missing is named."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PYTHON = r"""#!/usr/bin/env bash
# A Python that only records what it is asked for. FAIL names the step at which it dies.
echo "$@" >> "$LOG"
case "$*" in
--version) echo "Python 3.9.2" ;;
*version_info*) [ "$FAIL" != version ] ;;
*ensurepip*) [ "$FAIL" != ensurepip ] ;;
*"-m venv"*)
    directory="${@: -1}"
    rm -rf "$directory"
    mkdir -p "$directory/bin"
    cp "$0" "$directory/bin/python"
    [ "$FAIL" != venv ]
    ;;
*"-m pip"*) [ "$FAIL" != pip ] ;;
esac
"""


class Checkout:
    """A copy of what installs. `run` returns make's exit code and its output, `calls` what it asked Python for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.python = directory / "fake-python"
        self.python.write_text(PYTHON)
        self.python.chmod(0o755)
        self._log = directory / "calls"
        (directory / "requirements").mkdir()
        for name in ("Makefile", "requirements/install.sh"):
            shutil.copy(ROOT / name, directory / name)
        for name in ("local", "test", "ministack", "localstack"):
            (directory / "requirements" / f"{name}.txt").touch()

    def run(self, *arguments: str, fail: str = "", python: str | None = None) -> tuple[int, str]:
        self._log.write_text("")
        variables = {"PATH": os.environ["PATH"], "LOG": str(self._log), "FAIL": fail}
        done = subprocess.run(
            ["make", f"PYTHON={python or self.python}", *arguments],
            cwd=self.directory,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    def calls(self, text: str) -> list[str]:
        return [line for line in self._log.read_text().splitlines() if text in line]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_what_is_installed_is_not_installed_again_until_its_lock_changes(checkout: Checkout) -> None:
    assert checkout.run(".venv/.local")[0] == 0
    assert (len(checkout.calls("-m venv")), len(checkout.calls("-m pip"))) == (1, 1)
    assert checkout.run(".venv/.local")[0] == 0
    assert not checkout.calls("-m")
    stamp = (checkout.directory / ".venv/.local").stat().st_mtime
    os.utime(checkout.directory / "requirements/local.txt", (stamp + 1, stamp + 1))
    assert checkout.run(".venv/.local")[0] == 0
    assert (len(checkout.calls("-m venv")), len(checkout.calls("-m pip"))) == (0, 1)


def test_an_environment_that_was_interrupted_is_made_from_scratch(checkout: Checkout) -> None:
    code, output = checkout.run(".venv/.local", fail="venv")
    assert code
    assert "No virtual environment could be made in .venv" in output
    assert (checkout.directory / ".venv/bin/python").exists(), "the fake leaves half an environment, as venv does"
    assert not checkout.calls("-m pip")
    assert checkout.run(".venv/.local")[0] == 0
    assert [call.split()[2] for call in checkout.calls("-m venv")] == ["--clear"]
    assert len(checkout.calls("-m pip")) == 1


def test_packages_whose_installation_was_interrupted_are_installed_whole(checkout: Checkout) -> None:
    assert checkout.run(".venv/.local", fail="pip")[0]
    assert not (checkout.directory / ".venv/.local").exists()
    assert checkout.run(".venv/.local")[0] == 0
    (call,) = checkout.calls("-m pip")
    assert "--ignore-installed" in call
    assert not checkout.calls("-m venv")
    assert checkout.run(".venv/.test")[0] == 0
    (call,) = checkout.calls("-m pip")
    assert "--ignore-installed" not in call


def test_what_debian_leaves_out_is_named_and_works_once_it_is_there(checkout: Checkout) -> None:
    code, output = checkout.run(".venv/.local", fail="ensurepip")
    assert code
    assert "sudo apt-get install python3-venv" in output
    assert not (checkout.directory / ".venv").exists()
    assert checkout.run(".venv/.local")[0] == 0


def test_a_python_that_is_too_old_or_missing_is_named(checkout: Checkout) -> None:
    code, output = checkout.run("demo", fail="version")
    assert code
    assert "is Python 3.9.2. Gatecast needs Python 3.11 or later: name one, as in: make PYTHON=python3.12" in output
    code, output = checkout.run(".venv-localstack/.installed", fail="version")
    assert code
    assert "LocalStack needs Python 3.12 or later: name one, as in: make PYTHON=python3.12" in output
    assert checkout.calls("version_info < (3, 12)")
    assert not (checkout.directory / ".venv-localstack").exists()
    code, output = checkout.run("demo", python="no-such-python")
    assert code
    assert "There is no no-such-python here. Gatecast needs Python 3.11 or later" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "CLIENTS=10"], "ROOMS=20: at most half of CLIENTS=10"),
        (["demo", "MESSAGES=many"], "MESSAGES=many: must be a whole number"),
        (["local", "PORT=abc"], "'abc' is not a whole number from 0 to 65535"),
        (["local", "AUTHORIZER=yes"], "'yes' is neither 'none' nor 'required'"),
        (["local", "WORKERS=1000"], "'1000' is not a whole number from 0 to 64"),
    ],
)
def test_invalid_options_are_rejected_before_anything_is_installed(
    checkout: Checkout, arguments: list[str], message: str
) -> None:
    for name in ("local/__init__.py", "local/options.py", "local/demo/__init__.py", "local/demo/settings.py"):
        (checkout.directory / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, checkout.directory / name)
    code, output = checkout.run(*arguments, python=sys.executable)
    assert code
    assert message in output
    assert not (checkout.directory / ".venv").exists()
