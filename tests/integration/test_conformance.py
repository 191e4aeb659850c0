"""The questions and documented behaviours of `deploy.verify`, asked of ministack's own WebSocket APIs.

Of the emulator they are asked in test_verify_local.py, of an AWS account by `make verify-aws TARGET=aws`. What
ministack does otherwise than documented is in docs/emulator.md, in the same words as here.
"""

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from deploy.verify.asking import Asked
from deploy.verify.documented import DOCUMENTED
from deploy.verify.observation import Observation, Verdict
from deploy.verify.questions import QUESTIONS
from deploy.verify.target import Target
from tests.ministack_target import ministack_target

DOCUMENT = Path(__file__).parents[2] / "docs" / "emulator.md"
AS_DOCUMENTED = "as documented"
NOT_ASKED: Final = {"idle": "no time limits", "keep-alive": "not asked", "throttle": "no throttles"}
"""What takes minutes, and what ministack has none of."""
DIFFERENT: Final = {
    "subprotocol": ("none is chosen", "seen was None"),
    "no-route": ("no message", "seen was None"),
    "reserved": ("no message", "seen was None"),
    "not-json": ("no message", "seen was None"),
    "function-fails": ("the exception's text as a message", "seen was invalid literal"),
    "no-response": ("it is sent", "seen was a message"),
    "long-frame": ("accepted", "seen was an open connection"),
    "long-message": ("accepted", "seen was an open connection"),
    "binary": ("accepted", "seen was an open connection"),
    "described": ("other names (`ConnectedAt`), without the identity", "'ConnectedAt'"),
    "disconnect": ("1006, without a reason", r"seen was \(1006, ''\)"),
    "authorizer-raises": ("500", "seen was 500"),
    "errors": (
        "200 for another Region, an unknown key and another stage",
        "an unknown access key: 200, another stage: 200",
    ),
    "post-sizes": ("no limit", "larger ones get 200"),
    "slow-client": ("no limit", "No limit was reached"),
    "mock": ("the template's text, with its variables", "something else than the template's text"),
    "compression": ("compressed", "permessage-deflate"),
}
"""By name: what the document says, and what is seen."""
EVERY: Final[tuple[Asked, ...]] = (*QUESTIONS, *DOCUMENTED)
ASKED: Final = [each for each in EVERY if each.name not in NOT_ASKED]
ALONE: Final = ("ids", "order", "post-in-connect", "slow-client")
"""What keeps ministack's only process for the function busy, after the first, which starts it."""


async def observe(target: Target) -> dict[str, Observation]:
    """What is seen, by name. The probes wait most of the time, so that most are asked beside each other."""
    found: dict[str, Observation] = {}
    places = asyncio.Semaphore(6)

    async def probe(each: Asked) -> None:
        async with places:
            found[each.name] = await each.probe(target)

    for each in ASKED:
        if each.name in ALONE:
            await probe(each)
    async with asyncio.TaskGroup() as tasks:
        for each in ASKED:
            if each.name not in ALONE:
                tasks.create_task(probe(each))
    return found


@pytest.fixture(scope="module")
def seen() -> Mapping[str, Observation]:
    with ministack_target() as target:
        return asyncio.run(observe(target))


@pytest.mark.parametrize("name", [each.name for each in ASKED])
def test_ministack_is_as_the_document_says(name: str, seen: Mapping[str, Observation]) -> None:
    """If it differs less than before, correct the table above and docs/emulator.md."""
    observation = seen[name]
    if name in DIFFERENT:
        assert observation.verdict in {Verdict.DIFFERS, Verdict.UNCLEAR}, observation
        assert re.search(DIFFERENT[name][1], observation.reading), observation.reading
    else:
        assert observation.verdict is Verdict.FITS, observation


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading of the document."""
    section = DOCUMENT.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in lines[1:]]


def test_the_document_has_every_documented_behaviour_with_its_source() -> None:
    expected = [
        [each.name, each.behaviour, AS_DOCUMENTED, DIFFERENT.get(each.name, (AS_DOCUMENTED,))[0], each.source]
        for each in DOCUMENTED
    ]
    found = [[*cells[:4], re.sub(r"\[[^\]]+\]\(([^)]+)\)", r"\1", cells[4])] for cells in rows("Documented behaviour")]
    assert found == expected


def test_the_document_has_every_open_question() -> None:
    asked = {each.name: DIFFERENT.get(each.name, ("",))[0] or NOT_ASKED.get(each.name) for each in QUESTIONS}
    found = {cells[0]: cells[3] for cells in rows("What no document says")}
    assert found.keys() == asked.keys()
    for name, text in asked.items():
        assert text is None or found[name] == text, name
    questions = {each.name: each.question for each in QUESTIONS}
    assert {cells[0]: cells[1] for cells in rows("What no document says")} == questions
