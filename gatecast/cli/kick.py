"""`gatecast kick`: closes connections, and keeps a user from connecting again for a time."""

import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from gatecast.broadcast import InvalidBroadcast
from gatecast.cli import environment
from gatecast.cli.failures import Interrupted, WrongUsage, explained
from gatecast.cli.options import OutputOption, YesOption, check_name, seconds
from gatecast.cli.output import Output, confirm, note, time_text, write, write_json
from gatecast.kicks import kick_broadcast, revoked_until


def kick(
    user: Annotated[str | None, typer.Argument(metavar="USER", help="close all connections of this user")] = None,
    *,
    connections: Annotated[
        list[str] | None, typer.Option("--connections", metavar="ID", help="close this connection; may be repeated")
    ] = None,
    room: Annotated[str | None, typer.Option("--room", help="close all members of this room; @all is everyone")] = None,
    lasting: Annotated[
        str | None,
        typer.Option("--for", metavar="TIME", help="keep the user from connecting for this time; such as 15m, 1h, 7d"),
    ] = None,
    code: Annotated[str, typer.Option("--code", help="the reason that clients of gatecast.v2 receive")] = "kicked",
    retry: Annotated[bool, typer.Option("--retry", help="clients may connect again")] = False,
    yes: YesOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Close the connections of a user, single connections, or all members of a room.

    Reads GATECAST_QUEUE_URL and, with --for, GATECAST_TABLE. With --for, tokens that the user has now are not accepted
    afterwards either; --for 0s does only that, and takes 11 s, as clocks differ. A room needs a confirmation.
    """
    targets: dict[str, Any] = {"user": user, "room": room, "connections": connections}
    given = {name: value for name, value in targets.items() if value}
    if len(given) != 1:
        raise WrongUsage("exactly one of USER, --connections and --room is expected", "see gatecast kick --help")
    if lasting is not None and user is None:
        raise WrongUsage("--for is only for a user", "name the user, or leave --for out")
    for_seconds = None if lasting is None else seconds("--for", lasting)
    _check(code=code, retry=retry, **given)
    url = environment.queue_url()
    table = environment.table_name() if for_seconds is not None else ""
    if room is not None:
        confirm(f"close the connections of all members of {room}?", yes=yes)
    now = time.time()
    with explained():
        kick_id = _kick(url, table, now, time.sleep, for_seconds=for_seconds, code=code, retry=retry, **given)
    result: dict[str, Any] = {"id": kick_id, **given, "code": code, "retry": retry}
    if for_seconds is not None:
        result["not_before"] = revoked_until(now_ms=int(now * 1000), for_seconds=for_seconds)
    if output is Output.JSON:
        write_json(result)
        return
    for line in _lines(result):
        write(line)


def _check(**kicked: Any) -> None:
    """Raises WrongUsage unless this is a valid kick."""
    if kicked.get("user") == "@all":
        raise WrongUsage("@all is a room, not a user", "give --room @all to close all connections")
    for option, name in (("USER", "user"), ("--room", "room"), ("--code", "code")):
        if kicked.get(name):
            check_name(option, kicked[name])
    try:
        kick_broadcast(**kicked)
    except InvalidBroadcast as invalid:
        raise WrongUsage(str(invalid)) from None


def _kick(url: str, table: str, now: float, sleep: Callable[[float], object], **kicked: Any) -> str:
    """Returns the broadcast's id. A FIFO queue delays no single message, so it waits there for the second one."""
    from gatecast.publisher import Publisher
    from gatecast.rooms.kicking import kick as close
    from gatecast.rooms.revocations import Revocations

    session = environment.session()
    environment.check_credentials(session)
    publisher = Publisher(environment.client("sqs", session), url)
    revocations = Revocations(environment.client("dynamodb", session), table)
    result = close(publisher, revocations, now_ms=int(now * 1000), **kicked)
    if result.repeat_after_seconds:
        try:
            note(f"waiting {result.repeat_after_seconds} s, to close connections that are being opened now")
            sleep(result.repeat_after_seconds)
        except KeyboardInterrupt:
            raise Interrupted("connections that were being opened may remain", "run the same command again") from None
        close(publisher, revocations, now_ms=int(time.time() * 1000), **{**kicked, "for_seconds": None})
    return result.id


def _lines(result: dict[str, Any]) -> list[str]:
    if "user" in result:
        target = f"the connections of {result['user']}"
    elif "room" in result:
        target = f"the members of {result['room']}"
    else:
        target = f"{len(result['connections']):,} connection{'s' * (len(result['connections']) != 1)}"
    lines = [f"workers close {target}, id {result['id']}"]
    if "not_before" in result:
        lines.append(f"{result['user']} cannot connect before {time_text(result['not_before'])}")
    return lines
