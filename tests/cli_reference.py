"""The help of every command, as it is in docs/reference-cli.md: `python -m tests.cli_reference` writes it there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from typer import Context
from typer.main import get_command

from gatecast.cli.app import app

DOCUMENT: Final = Path(__file__).parents[1] / "docs" / "reference-cli.md"
MARKS: Final = ("<!-- help: written by tests/cli_reference.py -->\n", "<!-- help: end -->")
_WIDTH: Final = 100
_OF_ITS_OWN: Final = "emulator"
"""A command whose options are another program's: docs/emulator.md."""


def written() -> str:
    """The part of the document between the marks."""
    return "\n".join(_section(context) for context in _contexts(get_command(app), "gatecast", None))


def replaced(text: str) -> str:
    """The document with what is between the marks replaced."""
    head, start, rest = text.partition(MARKS[0])
    _, end, tail = rest.partition(MARKS[1])
    if not start or not end:
        raise ValueError(f"{DOCUMENT} lacks its marks")
    return f"{head}{start}\n{written()}\n{end}{tail}"


def _contexts(command: Any, name: str, parent: Context | None) -> Iterator[Context]:
    """Of each command that does something, in the order of the help."""
    context = Context(command, info_name=name, parent=parent, terminal_width=_WIDTH)
    children = getattr(command, "commands", {})
    if not children and name != _OF_ITS_OWN:
        yield context
    for child, its_command in children.items():
        yield from _contexts(its_command, child, context)


def _section(context: Context) -> str:
    return f"### {context.command_path}\n\n```text\n{context.command.get_help(context)}\n```\n"


if __name__ == "__main__":
    DOCUMENT.write_text(replaced(DOCUMENT.read_text()))
