"""What calls of `@connections` get: by connection id, by size, by signature, and by the state of the connection."""

import asyncio
import string
from collections.abc import Mapping, Sequence
from datetime import timedelta
from random import SystemRandom
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from deploy.verify.client import Client, connected, identified
from deploy.verify.observation import InvalidProbe, Observation, Verdict
from deploy.verify.target import Target
from deploy.verify.wire import Management, Response, describe, request

MALFORMED: Final = ("not an id", "AAA", "a" * 129)
UNKNOWN: Final = "unknown"
GONE: Final = "gone"
MAX_POST_BYTES: Final = 131_072
POSTS_IN_CONNECT: Final = 4
EARLY: Final = b"early"
LATE: Final = b"late"
SIZES: Final = (32_768, 32_769, 65_536, MAX_POST_BYTES, MAX_POST_BYTES + 1)

_FINAL: Final = {400, 403, 404, 410}
"""What the worker takes as final for one connection, as long as other posts succeed."""
_SKEW: Final = timedelta(hours=1)
_POLL_SECONDS: Final = 0.25
_EVENT_SECONDS: Final = 30.0


async def ids(target: Target) -> Observation:
    management = target.management()
    async with identified(target) as client:
        gone = client.id
    await _until_gone(management, gone, target.durations.settle_seconds)
    cases = {
        **{f"malformed, {len(each)} characters": each for each in MALFORMED},
        UNKNOWN: unknown_like(gone),
        GONE: gone,
    }
    return read_ids({name: await management.post(each) for name, each in cases.items()})


def read_ids(responses: Mapping[str, Response]) -> Observation:
    """The responses to posts, by what is wrong with the id: UNKNOWN, GONE, or how it is malformed."""
    facts = tuple(f"{name}: {describe(response)}" for name, response in responses.items())
    if responses[UNKNOWN].status != 410 or responses[GONE].status != 410:  # noqa: PLR2004
        unknown, gone = responses[UNKNOWN].status, responses[GONE].status
        return Observation(Verdict.DIFFERS, f"An unknown id gets {unknown}, a gone one {gone}, not 410", facts)
    malformed = {response.status for name, response in responses.items() if name not in {UNKNOWN, GONE}}
    statuses = " or ".join(map(str, sorted(malformed)))
    verdict = Verdict.FITS if malformed <= _FINAL else Verdict.DIFFERS
    return Observation(verdict, f"Unknown and gone ids get 410, malformed ones {statuses}", facts)


async def errors(target: Target) -> Observation:
    """Every cause of 403 that can be made with one identity."""
    management, keys = target.management(), target.keys()
    elsewhere = "eu-west-1" if target.region != "eu-west-1" else "us-east-1"
    async with identified(target) as client:
        wrong_secret = keys._replace(secret_access_key=keys.secret_access_key[::-1])
        unknown_key = keys._replace(access_key_id="AKIA" + "A" * 16, session_token=None)
        unsigned = management.url(client.id)
        other_path = _at_stage(management, "no-such-stage")
        seen = {
            "a wrong signature": await management.call("POST", client.id, b"{}", keys=wrong_secret),
            "a clock one hour slow": await management.call("POST", client.id, b"{}", signed_at=target.now() - _SKEW),
            "a clock one hour fast": await management.call("POST", client.id, b"{}", signed_at=target.now() + _SKEW),
            "signed for another Region": await management.call("POST", client.id, b"{}", region=elsewhere),
            "an unknown access key": await management.call("POST", client.id, b"{}", keys=unknown_key),
            "no signature": await request("POST", unsigned, {"host": urlsplit(unsigned).netloc}, b"{}"),
            "another stage": await other_path.post(client.id),
        }
        valid = await management.post(client.id)
    return read_errors(seen, valid)


def read_errors(responses: Mapping[str, Response], valid: Response) -> Observation:
    """The responses by cause, and the one to a valid post."""
    facts = tuple(f"{cause}: {describe(response)}" for cause, response in responses.items())
    if valid.status != 200:  # noqa: PLR2004
        return Observation(Verdict.UNCLEAR, f"A valid post got {describe(valid)}", facts)
    if others := {cause: each.status for cause, each in responses.items() if each.status != 403}:  # noqa: PLR2004
        listed = ", ".join(f"{cause}: {status}" for cause, status in others.items())
        return Observation(Verdict.DIFFERS, f"Not every cause gets 403 ({listed})", facts)
    kinds = {each.header("x-amzn-errortype").partition(":")[0] or "none" for each in responses.values()}
    return Observation(Verdict.FITS, f"All get 403, with the error types {', '.join(sorted(kinds))}", facts)


class Delivered(NamedTuple):
    """What a post of one size got, and what its client received: bytes, and the frames that they came in."""

    status: int
    received_bytes: int
    frames: int


async def post_sizes(target: Target) -> Observation:
    seen = {}
    for size in SIZES:
        async with identified(target) as client:
            receiving = asyncio.create_task(_receive_frames(client, target.durations.settle_seconds))
            try:
                response = await target.management().post(client.id, b"x" * size)
                seen[size] = Delivered(response.status, *await receiving)
            finally:
                receiving.cancel()
    return read_post_sizes(seen)


async def _receive_frames(client: Client, within_seconds: float) -> tuple[int, int]:
    received, frames = 0, 0
    try:
        async with asyncio.timeout(within_seconds):
            async for frame in client.connection.recv_streaming(decode=False):
                received, frames = received + len(frame), frames + 1
    except TimeoutError:
        pass
    return received, frames


def read_post_sizes(seen: Mapping[int, Delivered]) -> Observation:
    facts = tuple(
        f"{size:,} bytes: {each.status}, {each.received_bytes:,} bytes received in {each.frames} frames"
        for size, each in seen.items()
    )
    whole = [size for size, each in seen.items() if each.status == 200 and each.received_bytes == size]  # noqa: PLR2004
    expected = [size for size in seen if size <= MAX_POST_BYTES]
    too_large = {each.status for size, each in seen.items() if size > MAX_POST_BYTES}
    fits = whole == expected and too_large <= {413}
    listed = ", ".join(f"{size:,}" for size in whole) or "none"
    reading = f"Delivered whole: {listed} bytes; larger ones get {' or '.join(map(str, sorted(too_large)))}"
    return Observation(Verdict.FITS if fits else Verdict.DIFFERS, reading, facts)


async def post_in_connect(target: Target) -> Observation:
    """Posts to a connection while its `$connect` is kept from returning, and one afterwards."""
    opened = asyncio.Event()
    posting = asyncio.create_task(_post_until(opened, target))
    try:
        async with connected(target, query=f"?hold_ms={target.durations.hold_seconds * 1_000:.0f}") as client:
            opened.set()
            connection_id, during = await posting
            after = await target.management().post(connection_id, LATE)
            received = await client.receive_all(target.durations.settle_seconds, at_most=len(during) + 1)
    finally:
        posting.cancel()
    return read_post_in_connect(during, after, received.count(EARLY.decode()))


async def _post_until(opened: asyncio.Event, target: Target) -> tuple[str, list[Response]]:
    """The connection's id, and the responses that arrived before it was open."""
    event = await target.events.first("connecting", lambda _: True, within_seconds=_EVENT_SECONDS)
    if event is None:
        raise InvalidProbe("The function must report the connection before $connect returns, and did not")
    connection_id = event["connection"]
    target.masker.add(connection_id)
    responses: list[Response] = []
    while not opened.is_set() and len(responses) < POSTS_IN_CONNECT:
        response = await target.management().post(connection_id, EARLY)
        if not opened.is_set():
            responses.append(response)
    return connection_id, responses


def read_post_in_connect(during: Sequence[Response], after: Response, early_received: int) -> Observation:
    """The responses while `$connect` ran and to a post after it, and how many of the early posts were received."""
    facts = (
        *(f"during $connect: {describe(response)}" for response in during),
        f"after it: {describe(after)}",
        f"received of the posts during $connect: {early_received}",
    )
    if not during:
        return Observation(Verdict.UNCLEAR, "No post was made before the connection was open", facts)
    statuses = {response.status for response in during}
    listed = " or ".join(map(str, sorted(statuses)))
    if statuses <= {200} and early_received < len(during):
        return Observation(Verdict.DIFFERS, "A post during $connect gets 200 and is lost", facts)
    verdict = Verdict.FITS if statuses <= {200, 410} and after.status == 200 else Verdict.DIFFERS  # noqa: PLR2004
    return Observation(verdict, f"A post during $connect gets {listed}, one after it {after.status}", facts)


async def delete(target: Target) -> Observation:
    management, settle_seconds = target.management(), target.durations.settle_seconds
    async with identified(target) as client:
        deleted = await management.call("DELETE", client.id)
        code = await client.closed(settle_seconds)
        after = await management.post(client.id)
        event = await target.events.first(
            "disconnect", lambda each: bool(each["connection"] == client.id), within_seconds=_EVENT_SECONDS
        )
    return read_delete(deleted, code, after, event)


def read_delete(deleted: Response, code: int | None, after: Response, event: Mapping[str, Any] | None) -> Observation:
    """The response to DELETE, the close code that the client got, a post after that, and `$disconnect`'s event."""
    disconnect = f"code {event.get('code')}, reason {event.get('reason')!r}" if event else "none"
    facts = (
        f"DELETE: {describe(deleted)}",
        f"the client's close code: {code or 'none, it stayed open'}",
        f"a post after that: {describe(after)}",
        f"$disconnect: {disconnect}",
    )
    fits = deleted.status == 204 and code is not None and after.status == 410  # noqa: PLR2004
    reading = f"The client sees close code {code}" if code else "The client stays connected"
    follows = "$disconnect follows" if event else "no $disconnect follows"
    return Observation(Verdict.FITS if fits else Verdict.DIFFERS, f"{reading}; {follows}", facts)


async def _until_gone(management: Management, connection_id: str, within_seconds: float) -> None:
    """Wait until a closed connection is gone for `@connections`, too; a probe of its response needs no more."""
    for _ in range(int(within_seconds / _POLL_SECONDS) + 1):
        if (await management.post(connection_id)).status != 200:  # noqa: PLR2004
            return
        await asyncio.sleep(_POLL_SECONDS)


def unknown_like(connection_id: str) -> str:
    """An id of the same form that was never a connection's."""
    rng = SystemRandom()
    return "".join(rng.choice(string.ascii_letters) if each.isalnum() else each for each in connection_id)


def _at_stage(management: Management, stage: str) -> Management:
    endpoint = f"{management.endpoint.rpartition('/')[0]}/{stage}"
    return Management(endpoint, keys=management.keys, region=management.region, now=management.now)
