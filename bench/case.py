"""A benchmark: it measures, and turns its result into tables and targets."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from bench.samples import Sample, core, cost, peer_core, rate

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Extent:
    """How much to measure. `share` shrinks the sections of a quick run."""

    rounds: int
    share: float

    def posts(self, number: int) -> int:
        return max(int(number * self.share), 1)

    def seconds(self, seconds: float) -> float:
        return seconds * self.share


@dataclass(frozen=True, slots=True)
class Target:
    """`measured` must be at most, or at least, `limit`; both are formatted with `form`."""

    name: str
    limit: float
    measured: float
    form: str = "{:.2f}"
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    def row(self) -> list[str]:
        bound = "≥" if self.at_least else "≤"
        return [
            self.name,
            f"{bound} {self.form.format(self.limit)}",
            self.form.format(self.measured),
            "yes" if self.met else "**no**",
        ]


class Case(ABC, Generic[R]):
    """`result` is the Struct that `measure` returns and that the JSON file contains."""

    name: ClassVar[str]
    title: ClassVar[str]
    result: type[R]

    @abstractmethod
    def measure(self, extent: Extent) -> R: ...

    @abstractmethod
    def describe(self, result: R) -> list[str]:
        """Paragraphs and tables in Markdown."""

    @abstractmethod
    def targets(self, result: R) -> list[Target]: ...


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1) -> str:
    """A Markdown table. The first `texts` columns are text, the others are numbers."""
    lines = [columns, ["---"] * texts + ["---:"] * (len(columns) - texts), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


FIGURES = ("CPU µs per post", "rate", "client's core", "peer's core")


def figures(samples: Sequence[Sample]) -> list[str]:
    """The cells of the columns `FIGURES`."""
    return [
        f"{cost(samples):,.1f}",
        f"{rate(samples):,.0f}/s",
        f"{core(samples):.0%}",
        f"{peer_core(samples):.0%}",
    ]
