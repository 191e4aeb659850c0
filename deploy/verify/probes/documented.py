"""What AWS documents, asked one by one: each probe compares one behaviour with the document.

The table of these behaviours and their sources is `DOCUMENTED`, in `deploy.verify.documented`.
"""

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import websockets

from deploy.verify.client import RESPONSE_SECONDS, Client, connected, identified
from deploy.verify.function import PROTOCOL
from deploy.verify.observation import Observation, Verdict
from deploy.verify.target import Stage, Target

FRAME_BYTES: Final = 32_768
MESSAGE_BYTES: Final = 131_072
TOO_BIG: Final = 1009
UNACCEPTABLE: Final = 1003
CLIENT_CODE: Final = 4000
CLIENT_REASON: Final = "enough"
CONTEXT: Final = frozenset({
    "apiId", "connectedAt", "connectionId", "domainName", "eventType", "extendedRequestId", "identity", "messageId",
    "requestId", "requestTime", "requestTimeEpoch", "routeKey", "stage",
})  # fmt: skip
"""Of a message's event: the variables of the document that every request has."""

_ACCEPTED: Final = 101
_EVENT_SECONDS: Final = 30.0


def _compared(expected: Any, seen: Any) -> Observation:
    if seen == expected:
        return Observation(Verdict.FITS, f"As documented: {expected}")
    return Observation(Verdict.DIFFERS, f"Documented is {expected}, seen was {seen}")


async def connect_rejected(target: Target) -> Observation:
    return _compared(403, await _upgrade_status(target, query="?status=403"))


async def connect_fails(target: Target) -> Observation:
    status = await _upgrade_status(target, query="?status=none")
    return _compared("an error", "an error" if status >= 400 else status)  # noqa: PLR2004


async def subprotocol(target: Target) -> Observation:
    async with connected(target, subprotocols=["other", PROTOCOL]) as client:
        return _compared(PROTOCOL, client.connection.subprotocol)


async def selected(target: Target) -> Observation:
    async with connected(target) as client:
        await client.send("sized", bytes=3)
        return _compared("xxx", await client.receive(RESPONSE_SECONDS))


async def no_route(target: Target) -> Observation:
    return await _without_route(target, json.dumps({"action": "no-such-route"}))


async def reserved(target: Target) -> Observation:
    return await _without_route(target, json.dumps({"action": "$disconnect"}))


async def not_json(target: Target) -> Observation:
    return await _without_route(target, "no JSON")


async def _without_route(target: Target, sent: str) -> Observation:
    async with identified(target) as client:
        await client.connection.send(sent)
        message = await client.receive(target.durations.settle_seconds)
        return _compared(_error("Forbidden"), _shape(message, client))


async def function_fails(target: Target) -> Observation:
    async with identified(target) as client:
        await client.send("sized", bytes="none")
        message = await client.receive(target.durations.settle_seconds)
        return _compared(_error("Internal server error"), _shape(message, client))


async def no_response(target: Target) -> Observation:
    async with connected(target) as client:
        await client.send("silent")
        message = await client.receive(target.durations.settle_seconds)
        return _compared("no message", "a message" if message else "no message")


async def context(target: Target) -> Observation:
    async with connected(target) as client:
        missing = sorted(CONTEXT - set((await client.echo()).get("keys", ())))
        return _compared("no field missing", f"without {', '.join(missing)}" if missing else "no field missing")


async def whole_frame(target: Target) -> Observation:
    return await _echoed(target, [_padded(FRAME_BYTES)])


async def whole_message(target: Target) -> Observation:
    text = _padded(MESSAGE_BYTES)
    return await _echoed(target, [text[start : start + FRAME_BYTES] for start in range(0, len(text), FRAME_BYTES)])


async def _echoed(target: Target, frames: Sequence[str]) -> Observation:
    async with connected(target) as client:
        await client.connection.send(frames)
        try:
            seen = await client.receive(RESPONSE_SECONDS)
        except websockets.ConnectionClosed:
            return _compared("an echo", f"code {client.connection.close_code}")
        return _compared("an echo", "an echo" if seen and "connection" in seen else seen)


async def long_frame(target: Target) -> Observation:
    return await _closed(target, _padded(FRAME_BYTES + 1), TOO_BIG)


async def long_message(target: Target) -> Observation:
    text = _padded(MESSAGE_BYTES + 1)
    return await _closed(
        target, [text[start : start + FRAME_BYTES] for start in range(0, len(text), FRAME_BYTES)], TOO_BIG
    )


async def binary(target: Target) -> Observation:
    return await _closed(target, b"\x00", UNACCEPTABLE)


async def _closed(target: Target, message: Any, code: int) -> Observation:
    async with connected(target) as client:
        with contextlib.suppress(websockets.ConnectionClosed):
            await client.connection.send(message)
        seen = await client.closed(target.durations.settle_seconds)
        return _compared(f"code {code}", f"code {seen}" if seen else "an open connection")


async def posted(target: Target) -> Observation:
    async with identified(target) as client:
        status = (await target.management().post(client.id, b"hello")).status
        message = await client.receive(target.durations.settle_seconds) if status == 200 else None  # noqa: PLR2004
        return _compared((200, "hello"), (status, message))


async def described(target: Target) -> Observation:
    async with identified(target) as client:
        response = await target.management().call("GET", client.id)
    try:
        body = json.loads(response.body or b"null")
    except ValueError:
        body = None
    shape = sorted(body) if isinstance(body, dict) else body
    identity = sorted(body.get("identity") or ()) if isinstance(body, dict) else None
    expected = (200, ["connectedAt", "identity", "lastActiveAt"], ["sourceIp", "userAgent"])
    return _compared(expected, (response.status, shape, identity))


async def disconnect(target: Target) -> Observation:
    async with identified(target) as client:
        await client.connection.close(CLIENT_CODE, CLIENT_REASON)
    event = await target.events.first(
        "disconnect", lambda each: bool(each["connection"] == client.id), within_seconds=_EVENT_SECONDS
    )
    seen = None if event is None else (event.get("code"), event.get("reason"))
    return _compared((CLIENT_CODE, CLIENT_REASON), seen)


async def pong(target: Target) -> Observation:
    async with connected(target) as client:
        try:
            await asyncio.wait_for(await client.connection.ping(), target.durations.settle_seconds)
        except (TimeoutError, websockets.ConnectionClosed):
            return _compared("a pong", "none")
    return _compared("a pong", "a pong")


async def authorizer_context(target: Target) -> Observation:
    async with connected(target, target.authorized, query="?token=probe") as client:
        seen = (await client.echo()).get("authorizer") or {}
    names = ("number", "flag", "principalId")
    return _compared({"number": "1", "flag": "true", "principalId": "probe"}, {name: seen.get(name) for name in names})


async def authorizer_denies(target: Target) -> Observation:
    return _compared(403, await _upgrade_status(target, target.authorized, query="?token=deny"))


async def authorizer_raises(target: Target) -> Observation:
    return _compared(401, await _upgrade_status(target, target.authorized, query="?token=unauthorized"))


async def _upgrade_status(target: Target, stage: Stage | None = None, *, query: str = "") -> int:
    try:
        async with connected(target, stage, query=query):
            return _ACCEPTED
    except websockets.InvalidStatus as error:
        return error.response.status_code


def _error(message: str) -> Mapping[str, Any]:
    return {"message": message, "connectionId": "its own", "requestId": "any"}


def _shape(message: str | None, client: Client) -> Any:
    """An error message without its ids, which differ each time."""
    try:
        parsed = json.loads(message or "")
    except ValueError:
        return message
    if not isinstance(parsed, dict):
        return parsed
    ids = {"requestId": "any"} if parsed.get("requestId") else {}
    ids |= {"connectionId": "its own"} if parsed.get("connectionId") == client.id else {}
    return {**parsed, **ids}


def _padded(length: int) -> str:
    """A message for the route echo of this length."""
    message = json.dumps({"action": "echo", "n": 0, "pad": ""})
    return message.replace('""', f'"{"x" * (length - len(message))}"')
