"""What clients get from routes: responses, rejections, and the order of messages."""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import websockets

from deploy.verify.client import RESPONSE_SECONDS, connected, identified, parse_echo
from deploy.verify.function import PROTOCOL
from deploy.verify.observation import Observation, Verdict
from deploy.verify.target import Target
from deploy.verify.wire import Response, describe, request

QUIET: Final = ("nothing", "no body", "an empty body")
SIZES: Final = (32_768, 65_536, 131_072)
BURST: Final = 20
MAX_URL_CHARACTERS: Final = 4_096
URL_CHARACTERS: Final = (4_000, MAX_URL_CHARACTERS, MAX_URL_CHARACTERS + 1, 8_000)
QUERY: Final = "query"
SUBPROTOCOL: Final = "subprotocol"
NOWHERE: Final = "nowhere"

_DELAY_MS: Final = 1_000
_EXTENSIONS: Final = "sec-websocket-extensions"
_DEFLATE: Final = "permessage-deflate"
_ACCEPTED: Final = 101
_WHOLE: Final = "delivered whole"
_REF: Final = 'a "quoted" ref'


async def mock(target: Target) -> Observation:
    async with connected(target) as client:
        await client.send("ping")
        plain = await client.receive(target.durations.settle_seconds)
        await client.send("ping", ref=_REF)
        return read_mock(plain, await client.receive(target.durations.settle_seconds))


def read_mock(plain: str | None, referring: str | None) -> Observation:
    """The messages after a ping, and after one with a `ref`."""
    facts = tuple(
        f"after a ping {kind} ref the client received {message if message is None else message[:160]!r}"
        for kind, message in (("without", plain), ("with", referring))
    )
    if plain is None and referring is None:
        return Observation(Verdict.DIFFERS, "A MOCK integration does not respond on this route", facts)
    match _parsed(plain), _parsed(referring):
        case {"type": "pong", **others}, {"type": "pong", "ref": ref} if not others and ref == _REF:
            return Observation(Verdict.FITS, "A MOCK integration responds without a function, and repeats ref", facts)
        case {"type": "pong", **others}, {"type": "pong", **more} if not others and not more:
            return Observation(
                Verdict.DIFFERS, "A MOCK integration responds without a function, and without ref", facts
            )
    return Observation(Verdict.UNCLEAR, "The client received something else than the template's text", facts)


def _parsed(message: str | None) -> Any:
    try:
        return json.loads(message or "")
    except ValueError:
        return None


async def quiet(target: Target) -> Observation:
    seen = {}
    for how in QUIET:
        async with connected(target) as client:
            await client.send("quiet", how=how)
            seen[how] = await client.receive_all(target.durations.settle_seconds, at_most=1)
    return read_quiet(seen)


def read_quiet(seen: Mapping[str, Sequence[str]]) -> Observation:
    """What the client received, by what the function returned."""
    facts = tuple(
        f"the function returns {how}: {repr(messages[0][:160]) if messages else 'no message'}"
        for how, messages in seen.items()
    )
    silent = [how for how, messages in seen.items() if not messages]
    reading = f"The client gets no message if the function returns {' or '.join(silent)}"
    return Observation(Verdict.FITS, reading if silent else "The client gets a message in every case", facts)


async def sizes(target: Target) -> Observation:
    seen: dict[int, str | int | None] = {}
    for size in SIZES:
        async with connected(target) as client:
            await client.send("sized", bytes=size)
            try:
                seen[size] = await client.receive(RESPONSE_SECONDS)
            except websockets.ConnectionClosed:
                seen[size] = client.connection.close_code or 0
    return read_sizes(seen)


def read_sizes(seen: Mapping[int, str | int | None]) -> Observation:
    """What the client received by the size of the response: a message, a close code, or None."""
    results = {size: _response_of(size, received) for size, received in seen.items()}
    facts = tuple(f"a response of {size:,} bytes: {result}" for size, result in results.items())
    whole = [f"{size:,}" for size, result in results.items() if result == _WHOLE]
    verdict = Verdict.FITS if results[min(results)] == _WHOLE else Verdict.DIFFERS
    return Observation(verdict, f"Delivered whole: {', '.join(whole) or 'none'}", facts)


def _response_of(size: int, received: str | int | None) -> str:
    match received:
        case None:
            return "no message"
        case int():
            return f"the connection was closed with code {received}"
        case _ if received == "x" * size:
            return _WHOLE
        case _ if received and set(received) == {"x"}:
            return f"cut to {len(received):,} bytes"
        case _:
            return f"another message: {received[:160]!r}"


class Admission(NamedTuple):
    """The status of an upgrade (101: accepted), and where the authorizer found the token, if it was invoked."""

    status: int
    token: str | None = None


async def authorizer(target: Target) -> Observation:
    cases: dict[str, dict[str, Any]] = {
        QUERY: {"query": "?token=probe"},
        SUBPROTOCOL: {"subprotocols": [PROTOCOL, "probe"]},
        NOWHERE: {},
    }
    return read_authorizer({place: await _admission(target, options) for place, options in cases.items()})


async def _admission(target: Target, options: Mapping[str, Any]) -> Admission:
    try:
        async with connected(target, target.authorized, **options) as client:
            return Admission(_ACCEPTED, (await client.echo())["token"])
    except websockets.InvalidStatus as error:
        return Admission(error.response.status_code)


def read_authorizer(seen: Mapping[str, Admission]) -> Observation:
    """By where the token was: QUERY, SUBPROTOCOL or NOWHERE."""
    facts = tuple(
        f"token {place}: {each.status}, the authorizer {f'saw it: {each.token}' if each.token else 'was not invoked'}"
        for place, each in seen.items()
    )
    missing = [place for place, each in seen.items() if each.token != place]
    if missing:
        reading = f"The authorizer does not get every client: token {', '.join(missing)}"
        return Observation(Verdict.DIFFERS, reading, facts)
    return Observation(Verdict.FITS, "The authorizer is invoked for every client, wherever its token is", facts)


async def order(target: Target) -> Observation:
    async with identified(target) as client:
        await client.send("echo", n=0, delay_ms=_DELAY_MS)
        await client.send("echo", n=1)
        pair = await client.receive_all(RESPONSE_SECONDS, at_most=2)
        for n in range(BURST):
            await client.send("echo", n=n)
        burst = await client.receive_all(RESPONSE_SECONDS, at_most=BURST)
    return read_order(_numbers(pair), _numbers(burst))


def _numbers(messages: Sequence[str]) -> list[int | None]:
    return [seen["n"] if (seen := parse_echo(message)) else None for message in messages]


def read_order(pair: Sequence[int | None], burst: Sequence[int | None]) -> Observation:
    """The numbers of the responses as they arrived, None for an error: first 0, which is slow, and 1, then a burst."""
    arrived = [n for n in burst if n is not None]
    overtaken = sum(later < earlier for earlier, later in pairwise(arrived))
    facts = (
        f"a slow message and a fast one: responses {', '.join(map(str, pair)) or 'none'}",
        f"{BURST} messages back to back: {len(arrived)} responses, {overtaken} of them before an earlier one",
    )
    if sorted(n for n in pair if n is not None) != [0, 1]:
        return Observation(Verdict.UNCLEAR, "Not both messages got a response", facts)
    if list(pair) == [1, 0]:
        return Observation(Verdict.FITS, "A message overtakes an earlier one that takes longer", facts)
    if overtaken:
        return Observation(Verdict.FITS, "Messages overtake each other", facts)
    return Observation(Verdict.FITS, "No message overtook another one here", facts)


async def url_length(target: Target) -> Observation:
    return read_url_length({characters: await _upgrade_of_length(target, characters) for characters in URL_CHARACTERS})


async def _upgrade_of_length(target: Target, characters: int) -> Response:
    """The response to an upgrade request whose whole URL, beginning with `wss://`, has this many characters."""
    url = f"{target.main.url}?padding="
    return await _upgrade(url + "x" * (characters - len("wss:" + url.partition(":")[2])))


async def _upgrade(url: str, **more: str) -> Response:
    headers = {
        "host": urlsplit(url).netloc,
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-version": "13",
        "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA==",
        **more,
    }
    return await request("GET", url, headers)


def read_url_length(responses: Mapping[int, Response]) -> Observation:
    facts = tuple(f"{characters:,} characters: {describe(response)}" for characters, response in responses.items())
    accepted = [characters for characters, response in responses.items() if response.status == _ACCEPTED]
    rejected = {response.status for response in responses.values() if response.status != _ACCEPTED}
    verdict = (
        Verdict.FITS if {each for each in responses if each <= MAX_URL_CHARACTERS} <= set(accepted) else Verdict.DIFFERS
    )
    statuses = " or ".join(map(str, sorted(rejected))) or "nothing: all are accepted"
    reading = f"Accepted up to {max(accepted, default=0):,} characters; longer ones get {statuses}"
    return Observation(verdict, reading, facts)


async def compression(target: Target) -> Observation:
    return read_compression(await _upgrade(target.main.url, **{_EXTENSIONS: _DEFLATE}))


def read_compression(response: Response) -> Observation:
    facts = (describe(response),)
    if response.status != _ACCEPTED:
        return Observation(Verdict.UNCLEAR, f"The client was rejected with {response.status}", facts)
    if agreed := response.header(_EXTENSIONS):
        return Observation(Verdict.DIFFERS, f"Messages are compressed: {agreed}", facts)
    return Observation(Verdict.FITS, "Messages are not compressed", facts)
