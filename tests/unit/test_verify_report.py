"""The report of `deploy.verify`: what it contains, and when it counts as a failure."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from deploy.ecs.stacks import DeployError
from deploy.verify import asking
from deploy.verify.asking import Seen, ask
from deploy.verify.masking import Masker
from deploy.verify.observation import InvalidProbe, Observation, Verdict
from deploy.verify.questions import QUESTIONS, Question
from deploy.verify.report import Run, has_failed, render
from deploy.verify.target import Durations, Events, Stage, Target

FIRST, SECOND, THIRD = QUESTIONS[:3]
RUN = Run(target="AWS", region="eu-west-1", date="2026-11-27", lines=["the stack gatecast-verify-0a1b2c3d-probe"])


def test_a_report_has_every_question_with_what_was_seen() -> None:
    seen = {
        FIRST.name: Observation(Verdict.DIFFERS, "An unknown id gets 403", ("unknown: 403", "gone: 410")),
        SECOND.name: Observation(Verdict.NOT_ASKED, "The emulator cannot"),
    }
    text = render(RUN, [FIRST, SECOND, THIRD], seen, Masker())
    assert "Questions: 1 different from what Gatecast assumes, 2 not asked." in text
    assert f"| [{FIRST.name}](#{FIRST.name}) | **differs** | An unknown id gets 403 |" in text
    assert f"## {FIRST.name}\n\n{FIRST.question}\n\n- Why it matters: {FIRST.why}.\n" in text
    assert "**Seen (differs):** An unknown id gets 403\n\n- unknown: 403\n- gone: 410\n" in text
    assert "**Seen (not asked):** The emulator cannot" in text
    assert "**Seen (not asked):** The run ended before it was asked" in text
    assert "- Nothing is left over.\n" in text
    assert "ended early" not in text


def test_a_report_says_what_is_left_over_and_why_it_ended() -> None:
    run = replace(RUN, problem="interrupted", left="the stack x")
    text = render(run, [FIRST], {}, Masker())
    assert "- **The run ended early:** interrupted.\n- **Left over:** the stack x.\n" in text


def test_what_a_server_sent_cannot_change_the_report() -> None:
    sent = "one | two\n## heading <script> `code`"
    text = render(RUN, [FIRST], {FIRST.name: Observation(Verdict.FITS, sent, (sent,))}, Masker())
    safe = "one \\| two ## heading &lt;script> 'code'"
    assert f"| fits | {safe} |" in text
    assert f"\n- {safe}\n" in text
    assert sent not in text


@pytest.mark.parametrize(
    ("run", "verdict", "failed"),
    [
        (RUN, Verdict.FITS, False),
        (RUN, Verdict.DIFFERS, False),
        (RUN, Verdict.UNCLEAR, False),
        (RUN, Verdict.NOT_ASKED, False),
        (RUN, Verdict.FAILED, True),
        (replace(RUN, left="the stack"), Verdict.FITS, True),
        (replace(RUN, problem="interrupted"), Verdict.FITS, True),
    ],
)
def test_a_difference_is_a_result_and_no_failure(run: Run, verdict: Verdict, failed: bool) -> None:
    assert has_failed(run, {FIRST.name: Observation(verdict, "")}) is failed


# Asking


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> Target:
    """A target that works at once, and that no probe here talks to."""

    async def no_problem(_: Target) -> None: ...

    monkeypatch.setattr(asking, "_problem", no_problem)
    nothing: Any = None
    stage = Stage("wss://x/main", "https://x/main")
    return Target(
        main=stage,
        authorized=stage,
        events=Events(nothing, ""),
        keys=nothing,
        region="eu-west-1",
        now=nothing,
        durations=Durations(idle_seconds=0.01, keep_alive_seconds=0.01),
        not_asked={SECOND.name: "not here"},
    )


def question(name: str, probe: Any, *, long: bool = False) -> Question:
    return replace(FIRST, name=name, probe=probe, long=long)


async def fits(_: Target) -> Observation:
    return Observation(Verdict.FITS, "as assumed")


async def fails(_: Target) -> Observation:
    raise ExceptionGroup("unhandled errors", [InvalidProbe("The route echo must return an id\nmore")])


async def asked(target: Target, *questions: Question, quick: bool = False) -> dict[str, tuple[Verdict, str]]:
    seen = Seen()
    await ask(target, questions, seen, quick=quick, say=lambda _: None)
    return {name: (each.verdict, each.reading) for name, each in seen.items()}


async def test_a_probe_that_fails_costs_no_other(target: Target) -> None:
    assert await asked(target, question("a", fails), question("b", fits), question("c", fails, long=True)) == {
        "a": (Verdict.FAILED, "InvalidProbe: The route echo must return an id"),
        "b": (Verdict.FITS, "as assumed"),
        "c": (Verdict.FAILED, "InvalidProbe: The route echo must return an id"),
    }


async def test_what_cannot_be_asked_is_not_asked(target: Target) -> None:
    seen = await asked(target, replace(SECOND, probe=fails), question("long", fails, long=True), quick=True)
    assert seen[SECOND.name] == (Verdict.NOT_ASKED, "not here")
    assert seen["long"][0] is Verdict.NOT_ASKED


async def test_a_probe_that_does_not_end_fails(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hangs(_: Target) -> Observation:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(asking, "PROBE_SECONDS", 0.01)
    seen = await asked(target, question("a", hangs), question("b", hangs, long=True), question("c", fits))
    assert [each[0] for each in seen.values()] == [Verdict.FAILED, Verdict.FITS, Verdict.FAILED]
    assert "did not end within" in seen["a"][1]


async def test_long_probes_run_beside_the_others(target: Target) -> None:
    other_has_run = asyncio.Event()

    async def waits(_: Target) -> Observation:
        await other_has_run.wait()
        return await fits(target)

    async def releases(_: Target) -> Observation:
        other_has_run.set()
        return await fits(target)

    seen = await asked(target, question("long", waits, long=True), question("short", releases))
    assert {each[0] for each in seen.values()} == {Verdict.FITS}


async def test_what_was_seen_before_an_interruption_is_kept(target: Target) -> None:
    seen, reached = Seen(), asyncio.Event()

    async def hangs(_: Target) -> Observation:
        reached.set()
        await asyncio.Event().wait()
        raise AssertionError

    task = asyncio.create_task(
        ask(target, [question("a", fits), question("b", hangs)], seen, quick=False, say=lambda _: None)
    )
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert set(seen) == {"a"}


async def test_an_api_that_never_works_is_an_error_with_its_reason(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def problem(_: Target) -> str:
        return "a post got 403"

    monkeypatch.setattr(asking, "_problem", problem)
    monkeypatch.setattr(asking, "READY_SECONDS", 0.0)
    monkeypatch.setattr(asking, "_RETRY_SECONDS", 0.0)
    with pytest.raises(DeployError, match="does not work after 0 s: a post got 403"):
        await asked(target, question("a", fits))
