"""`gatecast publish`: publishes one message to a room."""

import os
import sys
from typing import Annotated, Any

import msgspec
import typer

from gatecast.broadcast import InvalidBroadcast
from gatecast.cli import environment
from gatecast.cli.failures import WrongUsage, explained
from gatecast.cli.options import OutputOption, check_name, seconds
from gatecast.cli.output import Output, write, write_json


def publish(
    room: Annotated[str, typer.Argument(metavar="ROOM", help="a room; @user/NAME is a user, @all is everyone")],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="the payload; - reads it from the standard input")],
    *,
    json: Annotated[bool, typer.Option("--json", help="the payload is JSON")] = False,
    message_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="a second message with this id is a duplicate (one day)")
    ] = None,
    expires_in: Annotated[
        str | None, typer.Option("--expires-in", metavar="TIME", help="nobody receives it later; such as 90s, 15m, 1h")
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Publish a message to a room.

    Reads GATECAST_QUEUE_URL and, for payloads that the queue cannot hold, GATECAST_PAYLOAD_BUCKET. If it fails, it may
    be repeated with the same --id.
    """
    check_name("ROOM", room)
    if message_id is not None:
        check_name("--id", message_id)
    url = environment.queue_url()
    bucket = os.environ.get(environment.BUCKET) or None
    payload = {"json": msgspec.Raw(_json(text))} if json else {"data": _text(text)}
    fields = {"id": message_id, "expires_in": None if expires_in is None else seconds("--expires-in", expires_in)}
    published = _publisher(url, bucket)(room=room, **payload, **fields)
    if output is Output.JSON:
        write_json({"id": published, "room": room})
    else:
        write(f"published to {room}, id {published}")


def _publisher(url: str, bucket: str | None) -> Any:
    """Publishes to this queue. It raises CommandFailed."""
    from gatecast.publisher import Publisher

    session = environment.session()
    environment.check_credentials(session)
    s3 = environment.client("s3", session) if bucket else None
    publisher = Publisher(environment.client("sqs", session), url, s3=s3, bucket=bucket)

    def publish(**fields: Any) -> str:
        with explained():
            try:
                return publisher.publish(**fields)
            except InvalidBroadcast as invalid:
                raise WrongUsage(*_wrong(invalid, bucket)) from None

    return publish


def _wrong(invalid: InvalidBroadcast, bucket: str | None) -> tuple[str, str]:
    what, _, hint = str(invalid).partition(": create the publisher with ")
    return (what, f"set {environment.BUCKET}, and clients receive a URL") if hint and bucket is None else (what, "")


def _text(given: str) -> str:
    if given != "-":
        return given
    try:
        return _read().decode().removesuffix("\n")
    except UnicodeDecodeError:
        raise WrongUsage("the standard input is not UTF-8", "payloads are text; publish a URL instead") from None


def _json(given: str) -> bytes:
    return (_read() if given == "-" else given.encode("utf-8", "surrogateescape")).strip()


def _read() -> bytes:
    return sys.stdin.buffer.read()
