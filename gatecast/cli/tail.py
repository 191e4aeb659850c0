"""`gatecast tail`: joins a room and prints its messages, through reconnects and without a gap, until Ctrl-C."""

import os
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from gatecast.cli.failures import CommandFailed, WrongUsage
from gatecast.cli.options import OutputOption
from gatecast.cli.output import Output, note, time_text, write, write_json

if TYPE_CHECKING:
    from gatecast.client import Client, Message, Room, RoomEvent

TOKEN: Final = "GATECAST_TOKEN"  # noqa: S105 - the name of a variable


def tail(
    room: Annotated[str, typer.Argument(metavar="ROOM", help="a room's name")],
    url: Annotated[str, typer.Argument(metavar="URL", help="the API's address for clients, wss://...")],
    *,
    since: Annotated[
        int | None, typer.Option("--since", metavar="OFFSET", help="begin after this offset, in a room with history")
    ] = None,
    last: Annotated[int, typer.Option("--last", metavar="N", min=0, max=100, help="begin with the last messages")] = 0,
    count: Annotated[
        int | None, typer.Option("--count", metavar="N", min=1, help="end after this many messages")
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Join a room and print its messages until Ctrl-C.

    It reconnects and continues where it was; it reports where messages may be missing. A token is read from
    GATECAST_TOKEN. As JSON, it prints one object per message or other event.
    """
    import asyncio

    if since is not None and last:
        raise WrongUsage("--since and --last exclude each other", "give one of them")
    try:
        asyncio.run(_tail(room, url, since=since, last=last, count=count, output=output))
    except KeyboardInterrupt:
        return  # how it is ended


async def _tail(room: str, url: str, *, since: int | None, last: int, count: int | None, output: Output) -> None:
    import asyncio

    from gatecast.client import ClientError, connect

    try:
        client = connect(url, os.environ.get(TOKEN) or None)
    except ValueError as error:
        raise WrongUsage(f"URL is {url!r}", str(error)) from None
    states = asyncio.create_task(_note_states(client))
    try:
        async with client:
            await _print_all(await client.join(room, since=since, last=last), count, output)
    except ClientError as error:
        raise _failed(error, url) from None
    finally:
        states.cancel()
        await asyncio.gather(states, return_exceptions=True)


async def _print_all(room: "Room", count: int | None, output: Output) -> None:
    note(f"joined {room.name}")
    async for event in room:
        is_message = _print(event, output)
        count = None if count is None else count - is_message
        if count == 0:
            return


async def _note_states(client: "Client") -> None:
    from gatecast.client import Connecting

    async for state in client.states():
        if isinstance(state, Connecting) and state.problem:
            note(f"{state.problem}; retrying")


def _print(event: "RoomEvent", output: Output) -> bool:
    """Prints one event. Whether it is a message."""
    from gatecast.client import Message, Presence, Recovered

    if output is Output.JSON:
        write_json(as_json(event))
        return isinstance(event, Message)
    match event:
        case Message():
            write(line(event))
            return True
        case Recovered(recovered=False):
            note("messages may be missing here")
        case Presence():
            users = (("joined", event.joined), ("departed", event.departed))
            note("; ".join(f"{what}: {', '.join(names)}" for what, names in users if names))
    return False


def line(message: "Message") -> str:
    """A message for people: offset, time, publisher and payload, as far as there are such."""
    parts = [str(message.offset)] if message.offset is not None else []
    parts += [time_text(message.published_at_ms / 1000), *([message.from_] if message.from_ else [])]
    if message.reference is not None:
        payload = f"{message.reference.bytes:,} bytes, {message.reference.content_type}: {message.reference.url}"
    elif message.raw is not None:
        payload = message.raw.decode("utf-8", "replace")
    else:
        payload = message.data or ""
    return f"{'  '.join(parts)}  {payload}"


def as_json(event: "RoomEvent") -> dict[str, Any]:
    """An event as values for JSON, with `type`: message, recovered or presence. What is absent is left out."""
    fields: dict[str, Any] = msgspec.structs.asdict(event)
    if (raw := fields.pop("raw", None)) is not None:
        fields["json"] = msgspec.Raw(raw)
    if "from_" in fields:
        fields["from"] = fields.pop("from_")
    kind = type(event).__name__.lower()
    return {"type": kind, **{name: value for name, value in fields.items() if value is not None}}


def _failed(error: Exception, url: str) -> CommandFailed:
    from gatecast.client import ConnectionClosed, ConnectionFailed, ConnectionRejected, RequestFailed

    match error:
        case ConnectionRejected():
            return CommandFailed(str(error), f"set {TOKEN} to a token that is valid, and check the address")
        case ConnectionFailed():
            return CommandFailed(f"{error} ({url})", "check the address and the network")
        case RequestFailed(code="forbidden_room"):
            return CommandFailed(f"the room cannot be joined: {error}", f"set {TOKEN} to a token with a grant for it")
        case RequestFailed():
            return CommandFailed(f"the room cannot be joined: {error}")
        case ConnectionClosed():
            return CommandFailed(f"the server has closed the connection for good ({error.code})")
    return CommandFailed(str(error))
