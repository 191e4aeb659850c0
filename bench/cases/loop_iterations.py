"""Event loop stalls: the CPU time of one loop iteration while the worker reads pages of a large room."""

from statistics import median
from typing import Final

import msgspec

from bench import peers
from bench.case import Case, Extent, Target, table
from bench.instrumented_worker import MIN_ITERATION_NS
from bench.programs import UNLIMITED, instrumented_worker, worker

_FAST_MEMBERS: Final = 300_000
_PACED_MEMBERS: Final = 100_000
_DEFAULT_RATE: Final = 10_000
_MAX_ROUNDS: Final = 3
_MAX_MS: Final = 20.0
_PERCENTILES: Final = (50.0, 99.0, 99.9)


class Iterations(msgspec.Struct):
    """CPU milliseconds per loop iteration in one run, and the run's rate and number of pages."""

    members: int
    iterations: int
    percentiles: dict[str, float]
    maximum: float
    rate: float
    pages: int


class Result(msgspec.Struct):
    runs: dict[str, list[Iterations]]
    """By the name of the rate limit."""


class LoopIterations(Case[Result]):
    name = "loop-iterations"
    title = "CPU time of one event loop iteration while pages are read"
    result = Result

    def measure(self, extent: Extent) -> Result:
        limits = {"none": (UNLIMITED, _FAST_MEMBERS), f"{_DEFAULT_RATE:,}/s": (_DEFAULT_RATE, _PACED_MEMBERS)}
        runs: dict[str, list[Iterations]] = {name: [] for name in limits}
        for _ in range(min(extent.rounds, _MAX_ROUNDS)):
            for name, (limit, members) in limits.items():
                runs[name].append(_run(limit, members if limit == UNLIMITED else extent.posts(members)))
                print(f"  limit {name:<10} {runs[name][-1]}", flush=True)
        return Result(runs)

    def describe(self, result: Result) -> list[str]:
        rows = [
            [
                limit,
                f"{median(run.members for run in runs):,.0f}",
                f"{median(run.iterations for run in runs):,.0f}",
                f"{median(run.pages for run in runs):.0f}",
                *(f"{median(run.percentiles[name] for run in runs):.2f} ms" for name in runs[0].percentiles),
                f"{max(run.maximum for run in runs):.2f} ms",
                f"{median(run.rate for run in runs):,.0f}/s",
            ]
            for limit, runs in result.runs.items()
        ]
        return [
            (
                "The whole worker on uvloop with one large room. The mock server's pages have up to 7,400 members, "
                "which is what DynamoDB's 1 MB holds; the worker requests fewer at a time, and runs unchanged here. "
                "`bench/instrumented_worker.py` reads the CPU clock of the loop's thread once per iteration. "
                f"Iterations of less than {MIN_ITERATION_NS // 1000} µs, which did no work, are excluded. Percentiles "
                "are medians over the rounds, the maximum is that of all rounds."
            ),
            table(["rate limit", "members", "iterations", "pages", *_names(), "maximum", "rate"], rows),
        ]

    def targets(self, result: Result) -> list[Target]:
        return [
            Target(
                f"CPU time of a loop iteration at p99.9, rate limit {limit}",
                _MAX_MS,
                median(run.percentiles["p99.9"] for run in runs),
                form="{:.2f} ms",
            )
            for limit, runs in result.runs.items()
        ]


def _names() -> list[str]:
    return [f"p{percent:g}" for percent in _PERCENTILES]


def _run(limit: int, members: int) -> Iterations:
    with (
        peers.aws() as aws,
        peers.connections() as connections,
        worker(
            aws, connections, program=instrumented_worker("iterations"), rate=limit, warm_up=peers.Workload(1, 1, 5_000)
        ) as started,
    ):
        with started.recording() as lines:
            sample = started.run(peers.Workload(1, 1, members))
        pages = started.operations()["Query"]
    iterations = sorted(int(line) / 1e6 for line in lines)
    return Iterations(
        members=members,
        iterations=len(iterations),
        percentiles={
            name: iterations[int(len(iterations) * percent / 100)]
            for name, percent in zip(_names(), _PERCENTILES, strict=True)
        },
        maximum=iterations[-1],
        rate=sample.rate,
        pages=pages,
    )
