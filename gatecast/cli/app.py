"""All commands in one program, and how it ends."""

from collections.abc import Sequence
from typing import Annotated, Final

import typer
from typer.exceptions import Abort, TyperException
from typer.main import get_command

import gatecast
from gatecast.cli import dead_letters, rooms
from gatecast.cli.doctor.command import doctor
from gatecast.cli.emulator import emulator
from gatecast.cli.failures import CommandFailed
from gatecast.cli.kick import kick
from gatecast.cli.output import note
from gatecast.cli.publish import publish
from gatecast.cli.tail import tail
from gatecast.cli.top.command import top

_PROGRAM: Final = "gatecast"
_PUBLISH: Final = f"{_PROGRAM} publish"
_INTERRUPTED: Final = 130

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
app.command()(publish)
app.command("room")(rooms.room)
app.add_typer(rooms.commands, name="rooms")
app.command()(tail)
app.command()(kick)
app.add_typer(dead_letters.commands, name="dead-letters")
app.command()(top)
app.command()(doctor)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})(
    emulator
)


@app.callback(invoke_without_command=True)
def _program(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="print the version")] = False
) -> None:
    """Broadcast to WebSocket clients behind Amazon API Gateway.

    Commands read the variables of the worker and the routes (GATECAST_QUEUE_URL, GATECAST_TABLE, ...) and those of the
    AWS SDK. Exit codes: 0 done, 1 failed, 2 wrong arguments or environment, 130 interrupted.
    """
    if version:
        typer.echo(f"gatecast {gatecast.__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code. An error is one line on the standard error."""
    try:
        result = get_command(app)(list(arguments), prog_name=_PROGRAM, standalone_mode=False)
    except CommandFailed as failed:
        note(f"{_PROGRAM}: {failed}")
        return failed.code
    except Abort:
        note(f"{_PROGRAM}: the input has ended")
        return 1
    except TyperException as wrong:
        note(_usage_line(wrong))
        return 2
    if result == _INTERRUPTED:
        note(f"{_PROGRAM}: interrupted")
    return int(result or 0)


def _usage_line(wrong: TyperException) -> str:
    context = getattr(wrong, "ctx", None)
    command = context.command_path if context else _PROGRAM
    what = " ".join(wrong.format_message().split()).rstrip(".")
    text = " (a text that begins with - needs -- before it)" if command == _PUBLISH and "o such option" in what else ""
    return f"{command}: {what[:1].lower()}{what[1:]}{text}: see {command} --help"
