"""docs/reference-cli.md has the help of every command as it is. `python -m tests.cli_reference` writes it."""

import re
import shlex
from pathlib import Path

import pytest

from gatecast.cli.__main__ import invoke
from tests.cli_reference import DOCUMENT, replaced, written

CHECKOUT = Path(__file__).parents[2]
EXAMPLES = [
    command
    for path in [*(CHECKOUT / "docs").glob("*.md"), CHECKOUT / "README.md"]
    for block in re.findall(r"^ *```sh\n(.*?)^ *```", path.read_text(), re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    for command in line.strip().split(" && ")
    if command.startswith("gatecast ")
]


def test_the_reference_is_the_help_of_the_commands() -> None:
    text = DOCUMENT.read_text()
    assert replaced(text) == text, "run python -m tests.cli_reference"


def test_every_command_is_there() -> None:
    names = {line.removeprefix("### gatecast ") for line in written().splitlines() if line.startswith("### ")}
    dead_letters = {f"dead-letters {command}" for command in ("list", "show", "redrive", "drop")}
    assert names == {"publish", "room", "rooms set", "rooms grow", "tail", "kick", "top", "doctor", *dead_letters}


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_commands_in_documents_have_these_options(example: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, *arguments = shlex.split(example, comments=True)
    if arguments[0] == "emulator":
        return
    assert invoke([*arguments, "--help"]) == 0, capsys.readouterr().err
