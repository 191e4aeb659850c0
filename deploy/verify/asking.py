"""Asks the questions of a target: the long ones beside the others, which follow one after another."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import websockets

from deploy.ecs.stacks import DeployError
from deploy.verify.client import identified
from deploy.verify.documented import Documented
from deploy.verify.observation import InvalidProbe, Observation, Verdict
from deploy.verify.questions import Question
from deploy.verify.target import Target
from deploy.verify.wire import NoResponse, Response, describe

READY_SECONDS: Final = 120.0
PROBE_SECONDS: Final = 180.0
"""How long a probe that is not long may take."""

_RETRY_SECONDS: Final = 2.0
_TOO_LONG: Final = "It takes more than ten minutes: leave out --quick to ask it"

Seen = dict[str, Observation]
Asked = Question | Documented


async def ask(
    target: Target, questions: Sequence[Asked], seen: Seen, *, quick: bool, say: Callable[[str], None]
) -> None:
    """Ask all questions, and put each observation into `seen` as soon as there is one.

    Raises DeployError if the deployed API does not work. If it is cancelled, `seen` has what was observed until then.
    """
    asked: list[Asked] = []
    for question in questions:
        if reason := target.not_asked.get(question.name):
            seen[question.name] = Observation(Verdict.NOT_ASKED, reason)
        elif question.long and quick:
            seen[question.name] = Observation(Verdict.NOT_ASKED, _TOO_LONG)
        else:
            asked.append(question)
    if not asked:
        return
    await _ready(target, say)
    durations = target.durations
    long_seconds = 2 * max(durations.idle_seconds, durations.keep_alive_seconds) + PROBE_SECONDS
    async with asyncio.TaskGroup() as tasks:
        for question in asked:
            if question.long:
                tasks.create_task(_ask(target, question, seen, say, within_seconds=long_seconds))
        for question in asked:
            if not question.long:
                await _ask(target, question, seen, say, within_seconds=PROBE_SECONDS)
        if waiting := [question.name for question in asked if question.name not in seen]:
            say(f"waiting for {', '.join(waiting)}")


async def _ask(
    target: Target, question: Asked, seen: Seen, say: Callable[[str], None], *, within_seconds: float
) -> None:
    say(f"{question.name}: asking")
    try:
        async with asyncio.timeout(within_seconds) as limit:
            observation = await question.probe(target)
    except Exception as error:  # noqa: BLE001 - one probe that fails must not cost the others
        late = f"The probe did not end within {within_seconds:.0f} s"
        observation = Observation(Verdict.FAILED, late if limit.expired() else _first(error))
    seen[question.name] = observation
    say(f"{question.name}: {observation.verdict.value.strip('*')}")


def _first(error: BaseException) -> str:
    """One line about an error; of a group, about its first."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}".splitlines()[0]


async def _ready(target: Target, say: Callable[[str], None]) -> None:
    """Wait until a client can connect and a post to it succeeds. Raises DeployError after a while."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + READY_SECONDS
    announced = False
    while True:
        problem = await _problem(target)
        if problem is None:
            return
        if loop.time() > deadline:
            raise DeployError(f"The API does not work after {READY_SECONDS:.0f} s: {problem}")
        if not announced:
            say(f"waiting until the API works: {problem}")
        announced = True
        await asyncio.sleep(_RETRY_SECONDS)


async def _problem(target: Target) -> str | None:
    """Why the API does not work yet; None if it does."""
    try:
        async with identified(target) as client:
            response = await target.management().post(client.id)
    except (OSError, TimeoutError, NoResponse, InvalidProbe, websockets.WebSocketException) as error:
        return _first(error)
    return None if response.status == 200 else _rejected(response)  # noqa: PLR2004


def _rejected(response: Response) -> str:
    hint = (
        ". Your identity needs execute-api:ManageConnections, and the network must reach the public API: a VPC endpoint"
        " for execute-api with private DNS prevents it"
    )
    return f"a post got {describe(response)}{hint if response.status == 403 else ''}"  # noqa: PLR2004
