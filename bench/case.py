"""What a benchmark is: it measures, and it turns what it has measured into tables and reached targets."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from bench.samples import Sample, core, cost, peer_core, rate

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured. `share` shrinks the sections of a quick run."""

    rounds: int
    share: float

    def posts(self, number: int) -> int:
        return max(int(number * self.share), 1)

    def seconds(self, seconds: float) -> float:
        return seconds * self.share


@dataclass(frozen=True, slots=True)
class Target:
    """`reached` is to be at most, or at least, `limit`; both are shown by `form`."""

    what: str
    limit: float
    reached: float
    form: str = "{:.2f}"
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.reached >= self.limit if self.at_least else self.reached <= self.limit

    def row(self) -> list[str]:
        bound = "≥" if self.at_least else "≤"
        return [
            self.what,
            f"{bound} {self.form.format(self.limit)}",
            self.form.format(self.reached),
            "yes" if self.met else "**no**",
        ]


class Case(ABC, Generic[R]):
    """`result` is the Struct that `measure` returns; it is what the JSON file holds."""

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
    """The first `texts` columns are text, the others are figures."""
    lines = [columns, ["---"] * texts + ["---:"] * (len(columns) - texts), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


FIGURES = ("CPU µs a post", "reached", "client's core", "peer's core")


def figures(samples: Sequence[Sample]) -> list[str]:
    """The cells of `FIGURES`: what every line of every load states."""
    return [
        f"{cost(samples):,.1f}",
        f"{rate(samples):,.0f}/s",
        f"{core(samples):.0%}",
        f"{peer_core(samples):.0%}",
    ]
