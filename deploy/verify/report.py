"""The report, in Markdown: what was asked, what was seen, and how it compares with what Gatecast assumes. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

from deploy.verify.documented import Documented
from deploy.verify.masking import Masker
from deploy.verify.observation import Observation, Verdict
from deploy.verify.questions import Question


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run. `lines` say what was deployed, `problem` why the run ended early, `left` what could not be removed."""

    target: str
    region: str
    date: str
    lines: Sequence[str] = ()
    problem: str | None = None
    left: str | None = None


def render(run: Run, asked: Sequence[Question | Documented], seen: Mapping[str, Observation], masker: Masker) -> str:
    """The whole report, masked. A question without an observation was not asked because the run ended early."""
    early = Observation(Verdict.NOT_ASKED, "The run ended before it was asked")
    every = [(each, seen.get(each.name, early)) for each in asked]
    observed = [(each, observation) for each, observation in every if isinstance(each, Question)]
    documented = [(each, observation) for each, observation in every if isinstance(each, Documented)]
    counts = Counter(observation.verdict for _, observation in observed)
    text = "\n".join(
        [
            f"# Gatecast's assumptions on {run.target}",
            "",
            f"{run.date}, Region {run.region}. {_summary(counts)}",
            *(["", f"Documented behaviour: {_count(documented)} as documented."] if documented else []),
            "",
            *(f"- {_cell(line)}." for line in run.lines),
            *([f"- **The run ended early:** {_cell(run.problem)}."] if run.problem else []),
            f"- **Left over:** {run.left}." if run.left else "- Nothing is left over.",
            "",
            "| question | Gatecast's assumption | what was seen |",
            "|---|---|---|",
            *(
                f"| [{question.name}](#{question.name}) | {each.verdict.value} | {_cell(each.reading)} |"
                for question, each in observed
            ),
            *(_documented(documented) if documented else []),
            *(line for question, observation in observed for line in _section(question, observation)),
            "",
        ]
    )
    return masker.mask(text)


def _count(observed: Sequence[tuple[Documented, Observation]]) -> str:
    fitting = sum(observation.verdict is Verdict.FITS for _, observation in observed)
    return f"{fitting} of {len(observed)}"


def _documented(observed: Sequence[tuple[Documented, Observation]]) -> list[str]:
    """The table of documented behaviours."""
    return [
        "",
        "| documented behaviour | | what was seen | the document |",
        "|---|---|---|---|",
        *(
            f"| {each.name}: {_cell(each.behaviour)} | {observation.verdict.value} | {_cell(observation.reading)} |"
            f" {each.source.rpartition('/')[2]} |"
            for each, observation in observed
        ),
    ]


def has_failed(run: Run, seen: Mapping[str, Observation]) -> bool:
    """Whether something did not work, so that the exit code is 1. A difference from an assumption is a result."""
    return bool(run.left or run.problem) or any(each.verdict is Verdict.FAILED for each in seen.values())


def _summary(counts: Mapping[Verdict, int]) -> str:
    parts = []
    for verdict in Verdict:
        match verdict:
            case Verdict.FITS:
                what = "as Gatecast assumes"
            case Verdict.DIFFERS:
                what = "different from what Gatecast assumes"
            case Verdict.UNCLEAR:
                what = "unclear"
            case Verdict.NOT_ASKED:
                what = "not asked"
            case Verdict.FAILED:
                what = "failed"
            case _ as never:
                assert_never(never)
        if counts.get(verdict):
            parts.append(f"{counts[verdict]} {what}")
    return f"Questions: {', '.join(parts)}."


def _section(question: Question, observation: Observation) -> list[str]:
    facts = [f"- {_cell(fact)}" for fact in observation.seen]
    return [
        "",
        f"## {question.name}",
        "",
        question.question,
        "",
        f"- Why it matters: {question.why}.",
        f"- What Gatecast assumes: {question.assumed}.",
        f"- How it was asked: {question.how}.",
        "",
        f"**Seen ({observation.verdict.value.strip('*')}):** {_cell(observation.reading)}",
        *(["", *facts] if facts else []),
    ]


def _cell(text: str) -> str:
    """Text from elsewhere on one line, without the characters that would end a cell or begin markup."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
