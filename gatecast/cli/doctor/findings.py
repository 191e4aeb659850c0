"""What a check has found."""

from enum import StrEnum
from typing import NamedTuple

from gatecast.cli.failures import Problem


class State(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "FAILED"
    SKIPPED = "skipped"
    """It could not be checked."""


class Finding(NamedTuple):
    """`remedy` is empty if there is nothing to do."""

    check: str
    state: State
    what: str
    remedy: str = ""

    @classmethod
    def from_problem(cls, check: str, problem: Problem, *, subject: str = "") -> "Finding":
        what = f"{subject}: {problem.what}" if subject else problem.what
        return cls(check, State.FAILED, what, problem.remedy)


def ok(check: str, what: str) -> Finding:
    return Finding(check, State.OK, what)


def warning(check: str, what: str, remedy: str) -> Finding:
    return Finding(check, State.WARNING, what, remedy)


def failed(check: str, what: str, remedy: str) -> Finding:
    return Finding(check, State.FAILED, what, remedy)


def skipped(check: str, what: str, remedy: str = "") -> Finding:
    return Finding(check, State.SKIPPED, what, remedy)
