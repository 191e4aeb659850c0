"""What ends an idle connection: of a client, and of the HTTP connection that posts are sent on."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple

import websockets

from deploy.verify.client import Client, identified
from deploy.verify.observation import Observation, Verdict
from deploy.verify.target import Target
from deploy.verify.wire import SILENCE, Connection, NoResponse, sign
from deploy.verify.wire import target as request_target

SILENT: Final = "silent"
PINGS: Final = "client pings"
POSTS: Final = "posts to it"
MESSAGES: Final = "client messages"

RETIRED_AFTER_SECONDS: Final = 240
"""The worker closes its own connections after they were idle this long."""
RESPONSE: Final = "a response"
UNKNOWN_ID: Final = "AAAAAAAAAAAAAAA="

_ACTIONS_PER_TIMEOUT: Final = 4
_WATCH_TIMEOUTS: Final = 1.3
_IDLE_SHARES: Final = (0.05, 0.2, 0.4, 0.6, 1.0)


class End(NamedTuple):
    """How and when a connection ended."""

    how: str
    after_seconds: float


async def idle(target: Target) -> Observation:
    """Four connections at once: one is silent, on each of the others one thing happens regularly."""
    management = target.management()

    async def ping(client: Client) -> None:
        await client.connection.ping()

    async def post(client: Client) -> None:
        await management.post(client.id)

    async def message(client: Client) -> None:
        await client.send("echo")

    actions: dict[str, Callable[[Client], Awaitable[None]] | None] = {
        SILENT: None,
        PINGS: ping,
        POSTS: post,
        MESSAGES: message,
    }
    async with asyncio.TaskGroup() as tasks:
        running = {name: tasks.create_task(_watch(target, action)) for name, action in actions.items()}
    return read_idle({name: task.result() for name, task in running.items()}, target.durations.idle_seconds)


async def _watch(target: Target, action: Callable[[Client], Awaitable[None]] | None) -> End | None:
    """Wait until the server closes the connection, or well beyond its limit; None if it is still open then."""
    limit_seconds = target.durations.idle_seconds
    async with identified(target) as client:
        started_at = time.monotonic()
        while time.monotonic() - started_at < limit_seconds * _WATCH_TIMEOUTS:
            code = await client.closed(limit_seconds / _ACTIONS_PER_TIMEOUT)
            if code is not None:
                return End(f"close code {code}", time.monotonic() - started_at)
            if action:
                try:
                    await action(client)
                except websockets.ConnectionClosed:
                    return End(f"close code {client.connection.close_code}", time.monotonic() - started_at)
    return None


def read_idle(ends: Mapping[str, End | None], limit_seconds: float) -> Observation:
    """How each connection ended, by what happened on it; None if it stayed open."""
    watched = f"open after {limit_seconds * _WATCH_TIMEOUTS:.0f} s"
    facts = tuple(
        f"{name}: {f'{end.how} after {end.after_seconds:.0f} s' if end else watched}" for name, end in ends.items()
    )
    if ends[SILENT] is None:
        return Observation(Verdict.UNCLEAR, f"A silent connection was not closed after {limit_seconds:.0f} s", facts)
    if ends[MESSAGES] is not None:
        return Observation(Verdict.DIFFERS, "Even a client that sends messages is closed", facts)
    kept = [name for name in (PINGS, POSTS) if ends[name] is None]
    closed = [name for name in (PINGS, POSTS) if ends[name] is not None]
    reading = "; ".join(
        [*(f"{name} reset the timer" for name in kept), *(f"{name} do not reset the timer" for name in closed)]
    )
    return Observation(Verdict.FITS, f"{reading[0].upper()}{reading[1:]}", facts)


async def keep_alive(target: Target) -> Observation:
    """One HTTP connection is only watched; others are idle for different times, and then used again."""
    seconds = target.durations.keep_alive_seconds
    async with asyncio.TaskGroup() as tasks:
        watched = tasks.create_task(_watched(target, seconds))
        used = {share * seconds: tasks.create_task(_used_after(target, share * seconds)) for share in _IDLE_SHARES}
    return read_keep_alive(watched.result(), {idle: task.result() for idle, task in used.items()}, seconds)


async def _watched(target: Target, seconds: float) -> End | None:
    connection = await _open(target)
    try:
        started_at = time.monotonic()
        how = await connection.end(seconds)
        return End(how, time.monotonic() - started_at) if how else None
    finally:
        connection.close()


async def _used_after(target: Target, seconds: float) -> str:
    connection = await _open(target)
    try:
        await asyncio.sleep(seconds)
        return await _exchange(target, connection)
    except NoResponse as error:
        return str(error)
    finally:
        connection.close()


async def _open(target: Target) -> Connection:
    """A connection that has served a request."""
    connection = await Connection.open(target.main.endpoint)
    try:
        await _exchange(target, connection)
    except BaseException:
        connection.close()
        raise
    return connection


async def _exchange(target: Target, connection: Connection) -> str:
    url = target.management().url(UNKNOWN_ID)
    headers = sign("GET", url, b"", keys=target.keys(), region=target.region, signed_at=target.now())
    await connection.exchange("GET", request_target(url), headers)
    return RESPONSE


def read_keep_alive(watched: End | None, used: Mapping[float, str], seconds: float) -> Observation:
    """How the watched connection ended, and what requests got on connections that had been idle, by seconds."""
    how = f"{watched.how} after {watched.after_seconds:.0f} s" if watched else f"open after {seconds:.0f} s"
    facts = (
        f"an idle connection: {how}",
        *(f"a request after {idle:.3g} idle seconds: {result}" for idle, result in used.items()),
    )
    if silent := [idle for idle, result in used.items() if result.startswith(SILENCE)]:
        verdict = Verdict.DIFFERS if min(silent) <= RETIRED_AFTER_SECONDS else Verdict.FITS
        return Observation(verdict, f"A connection is dead without notice after {min(silent):.3g} idle seconds", facts)
    if watched:
        reading = f"The server ends an idle connection after {watched.after_seconds:.0f} s, with {watched.how}"
        return Observation(Verdict.FITS, reading, facts)
    if failed := [idle for idle, result in used.items() if result != RESPONSE]:
        reading = f"An idle connection stays open, but a request after {min(failed):.3g} s ends it: {used[min(failed)]}"
        return Observation(Verdict.FITS, reading, facts)
    return Observation(Verdict.FITS, f"An idle connection stays open for at least {seconds:.3g} s", facts)
