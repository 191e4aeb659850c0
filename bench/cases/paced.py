"""Paced at 10,000 posts a second, answers after 5 to 15 ms: a share of a core, and what pacing adds to a post."""

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Final

import msgspec

from bench import peers
from bench.case import FIGURES, Case, Extent, Target, figures, table
from bench.clients.ready_to_post import READY_PER_SECOND
from bench.programs import UNLIMITED, Load, ask_client, python, run_client, worker
from bench.samples import Sample, Samples, core, interleave, rate

RATE: Final = 10_000
DELAYS_MS: Final = (5, 15)
WORKER: Final = "whole worker"
ENGINE: Final = "engine alone"
_IN_FLIGHT: Final = 256
_SECTION_SECONDS: Final = 3.0
_AFTER_SECONDS: Final = 1.0
_SHARE_OF_CORE: Final = 0.4
_LEAST_RATE: Final = 0.99
_MOST_LATENCY_ROUNDS: Final = 3
_LATENCY_POSTS: Final = 30_000


class Waited(msgspec.Struct):
    """From ready to written, in milliseconds."""

    p50: float
    p90: float
    p99: float
    p99_9: float = msgspec.field(name="p99.9")
    maximum: float


class Result(msgspec.Struct):
    samples: Samples
    waited: dict[str, list[Waited]]
    """By the limit of the pacing, in words."""


class Paced(Case[Result]):
    name = "paced"
    title = "Paced at 10,000 posts a second, answers after 5 to 15 ms"
    result = Result

    def measure(self, extent: Extent) -> Result:
        with peers.aws() as aws, peers.connections(DELAYS_MS) as connections:
            samples = interleave(extent.rounds, _clients(aws, connections, extent))
            limits = {f"{RATE:,}/s": RATE, "none": UNLIMITED}
            waited: dict[str, list[Waited]] = {name: [] for name in limits}
            for _ in range(min(extent.rounds, _MOST_LATENCY_ROUNDS)):
                for name, limit in limits.items():
                    load = Load(extent.posts(_LATENCY_POSTS), 256, _IN_FLIGHT, 3_000, limit)
                    told = ask_client(python("bench.clients.ready_to_post"), connections, load)
                    waited[name].append(msgspec.json.decode(told, type=Waited))
                    print(f"  limit {name:<10} ready to post: {told.decode()} ms", flush=True)
        return Result(samples, waited)

    def describe(self, result: Result) -> list[str]:
        rows = [[name, *figures(taken)] for name, taken in result.samples.items()]
        waits = [
            [
                limit,
                *(
                    f"{median(getattr(each, field) for each in found):.2f}"
                    for field in ("p50", "p90", "p99", "p99_9", "maximum")
                ),
            ]
            for limit, found in result.waited.items()
        ]
        return [
            (
                f"One room that is always large enough, bodies of 256 B, up to {_IN_FLIGHT} connections, a steady "
                "section of some seconds; the worker with its metrics on and scraped once a second."
            ),
            table(["", *FIGURES], rows),
            (
                f"**What pacing adds to a post**: deliveries become ready one by one, evenly, {READY_PER_SECOND:,} a "
                "second, as many as the limit allows; the figure is the time from that moment until the request has "
                "been written to its socket, signature and TLS included. Without a limit what remains is the tick, "
                "which lets one wake-up serve many answers; the difference between the lines is what the permits add. "
                "Milliseconds, engine alone."
            ),
            table(["limit", "p50", "p90", "p99", "p99.9", "maximum"], waits),
        ]

    def targets(self, result: Result) -> list[Target]:
        taken = result.samples[WORKER]
        return [
            Target(f"worker's share of a core at {RATE:,} posts a second", _SHARE_OF_CORE, core(taken)),
            Target("rate reached while paced", RATE * _LEAST_RATE, rate(taken), form="{:,.0f}/s", at_least=True),
        ]


def _clients(aws: peers.Aws, connections: peers.Connections, extent: Extent) -> dict[str, Callable[[], Sample]]:
    seconds = extent.seconds(_SECTION_SECONDS)

    def run_worker() -> Sample:
        with worker(aws, connections, rate=RATE, warm_up=peers.Workload(1, 1, RATE // 2)) as started:
            members = int(RATE * (_AFTER_SECONDS + seconds + 2))
            return started.run_section(peers.Workload(1, 1, members), after=_AFTER_SECONDS, seconds=seconds)

    load = Load(int(RATE * seconds), 256, _IN_FLIGHT, RATE // 2, RATE)
    return {WORKER: run_worker, ENGINE: partial(run_client, python("bench.clients.engine"), connections, load)}
