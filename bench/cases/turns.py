"""Loop stalls: how much CPU does a turn of the worker's loop take while it reads pages of a large room?"""

from statistics import median
from typing import Final

import msgspec

from bench import peers
from bench.case import Case, Extent, Target, table
from bench.instrumented_worker import SHORTEST_NS
from bench.programs import UNLIMITED, instrumented_worker, worker

_FAST_MEMBERS: Final = 300_000
_PACED_MEMBERS: Final = 100_000
_DEFAULT_RATE: Final = 10_000
_MOST_ROUNDS: Final = 3
_MOST_MS: Final = 20.0
_PERCENTILES: Final = (50.0, 99.0, 99.9)


class Turns(msgspec.Struct):
    """CPU milliseconds of the turns of one run, and what the run was like."""

    members: int
    turns: int
    percentiles: dict[str, float]
    maximum: float
    rate: float
    pages: int


class Result(msgspec.Struct):
    runs: dict[str, list[Turns]]
    """By the ceiling of the rate, in words."""


class LoopTurns(Case[Result]):
    name = "turns"
    title = "CPU of one turn of the loop while pages are read"
    result = Result

    def measure(self, extent: Extent) -> Result:
        limits = {"none": (UNLIMITED, _FAST_MEMBERS), f"{_DEFAULT_RATE:,}/s": (_DEFAULT_RATE, _PACED_MEMBERS)}
        runs: dict[str, list[Turns]] = {name: [] for name in limits}
        for _ in range(min(extent.rounds, _MOST_ROUNDS)):
            for name, (limit, members) in limits.items():
                runs[name].append(_run(limit, members if limit == UNLIMITED else extent.posts(members)))
                print(f"  limit {name:<10} {runs[name][-1]}", flush=True)
        return Result(runs)

    def describe(self, result: Result) -> list[str]:
        rows = [
            [
                limit,
                f"{median(run.members for run in runs):,.0f}",
                f"{median(run.turns for run in runs):,.0f}",
                f"{median(run.pages for run in runs):.0f}",
                *(f"{median(run.percentiles[name] for run in runs):.2f} ms" for name in runs[0].percentiles),
                f"{max(run.maximum for run in runs):.2f} ms",
                f"{median(run.rate for run in runs):,.0f}/s",
            ]
            for limit, runs in result.runs.items()
        ]
        return [
            (
                "The whole worker on uvloop with one large room. The stand-in has pages of 7,400 members, which is "
                "what DynamoDB's 1 MB holds; the worker asks for fewer at a time, and this is the worker as it is. "
                "`bench/instrumented_worker.py` reads the CPU clock of the loop's thread once a turn. Turns of less "
                f"than {SHORTEST_NS // 1000} µs, in which nothing happened, are left out. Percentiles are medians over "
                "the rounds, the maximum is that of all rounds."
            ),
            table(["limit of the rate", "members", "turns", "pages", *_names(), "maximum", "reached"], rows),
        ]

    def targets(self, result: Result) -> list[Target]:
        return [
            Target(
                f"CPU of a turn at p99.9, limit of the rate: {limit}",
                _MOST_MS,
                median(run.percentiles["p99.9"] for run in runs),
                form="{:.2f} ms",
            )
            for limit, runs in result.runs.items()
        ]


def _names() -> list[str]:
    return [f"p{percent:g}" for percent in _PERCENTILES]


def _run(limit: int, members: int) -> Turns:
    with (
        peers.aws() as aws,
        peers.connections() as connections,
        worker(
            aws, connections, program=instrumented_worker("turns"), rate=limit, warm_up=peers.Workload(1, 1, 5_000)
        ) as started,
    ):
        with started.recording() as lines:
            sample = started.run(peers.Workload(1, 1, members))
        pages = started.operations()["Query"]
    turns = sorted(int(line) / 1e6 for line in lines)
    return Turns(
        members=members,
        turns=len(turns),
        percentiles={
            name: turns[int(len(turns) * percent / 100)] for name, percent in zip(_names(), _PERCENTILES, strict=True)
        },
        maximum=turns[-1],
        rate=sample.rate,
        pages=pages,
    )
