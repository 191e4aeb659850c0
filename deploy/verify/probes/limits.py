"""What is throttled: stages, routes, and clients that do not read."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from deploy.verify.client import identified, parse_echo
from deploy.verify.observation import Observation, Verdict
from deploy.verify.target import Stage, Target
from deploy.verify.wire import Response, describe

STAGE: Final = "stage"
ROUTE: Final = "route"
MESSAGES: Final = 20
POSTS: Final = 20
MAX_UNREAD_POSTS: Final = 150
UNREAD_BYTES: Final = 131_072

_THROTTLED: Final = 429
_REFILL_SECONDS: Final = 2.0


class Throttled(NamedTuple):
    """`echoed` of the messages that a client sent at once came back; `statuses` of the posts that followed."""

    echoed: int
    statuses: Mapping[int, int]


async def throttle(target: Target) -> Observation:
    return read_throttles({name: await _throttled(target, stage) for name, stage in target.limited.items()})


async def _throttled(target: Target, stage: Stage) -> Throttled:
    management = target.management(stage)
    async with identified(target, stage) as client:
        await asyncio.sleep(_REFILL_SECONDS)
        for n in range(MESSAGES):
            await client.send("echo", n=n)
        received = await client.receive_all(target.durations.settle_seconds, at_most=MESSAGES)
        echoed = sum(parse_echo(message) is not None for message in received)
        responses = await asyncio.gather(*(management.post(client.id) for _ in range(POSTS)))
    return Throttled(echoed, Counter(response.status for response in responses))


def read_throttles(seen: Mapping[str, Throttled]) -> Observation:
    """The stage has a limit for all routes by default, or each route has one of its own: `seen` by STAGE or ROUTE."""
    facts = tuple(
        f"limit of 1 per second on the {name}: {each.echoed} of {MESSAGES} messages of a client came back;"
        f" {POSTS} posts got {_counted(each.statuses)}"
        for name, each in seen.items()
    )
    if unlimited := [name for name, each in seen.items() if each.echoed >= MESSAGES]:
        return Observation(Verdict.UNCLEAR, f"The limit on the {unlimited[0]} did not throttle its own messages", facts)
    counting = {name for name, each in seen.items() if _THROTTLED in each.statuses}
    match STAGE in counting, ROUTE in counting:
        case False, False:
            return Observation(Verdict.FITS, "Neither limit counts calls of @connections", facts)
        case True, False:
            reading = "The default of a stage counts calls of @connections, the limits of its routes do not"
            return Observation(Verdict.FITS, reading, facts)
        case _:
            return Observation(Verdict.DIFFERS, "The limits of routes throttle calls of @connections, too", facts)


async def slow_client(target: Target) -> Observation:
    management, passed = target.management(), 0
    async with identified(target, reads=False) as client:
        body = b"x" * UNREAD_BYTES
        response = await management.post(client.id, body)
        while response.status == 200 and passed < MAX_UNREAD_POSTS:  # noqa: PLR2004
            passed += 1
            response = await management.post(client.id, body)
        again = [await management.post(client.id, b"{}") for _ in range(2)]
    return read_slow_client(passed, response, again)


def read_slow_client(passed: int, last: Response, following: Sequence[Response]) -> Observation:
    """`passed` posts were accepted, then `last` was the response, and small posts got the `following` ones."""
    facts = (
        f"{passed} posts of {UNREAD_BYTES:,} bytes were accepted",
        f"then: {describe(last)}",
        f"small posts after that: {', '.join(str(each.status) for each in following)}",
    )
    match last.status:
        case 429:
            reading = f"A client that does not read gets 429 after {passed * UNREAD_BYTES / 2**20:.1f} MiB"
            return Observation(Verdict.FITS, reading, facts)
        case 200:
            return Observation(Verdict.UNCLEAR, "No limit was reached", facts)
        case status:
            return Observation(Verdict.DIFFERS, f"A client that does not read gets {status}, not 429", facts)


def _counted(statuses: Mapping[int, int]) -> str:
    return ", ".join(f"{count} × {status}" for status, count in sorted(statuses.items()))
