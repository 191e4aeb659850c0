"""Paced at 10,000 posts per second, responses after 5 to 15 ms: share of a core, and the latency that pacing adds."""

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Final

import msgspec

from bench import peers
from bench.case import FIGURES, Case, Extent, Target, figures, table
from bench.clients.ready_to_post import READY_PER_SECOND
from bench.programs import UNLIMITED, Load, python, run_client, run_reporting_client, worker
from bench.samples import Sample, Samples, core, interleave, rate

RATE: Final = 10_000
DELAYS_MS: Final = (5, 15)
WORKER: Final = "whole worker"
ENGINE: Final = "engine alone"
_IN_FLIGHT: Final = 256
_SECTION_SECONDS: Final = 3.0
_AFTER_SECONDS: Final = 1.0
_MAX_CORE_SHARE: Final = 0.4
_MIN_RATE_SHARE: Final = 0.99
_MAX_LATENCY_ROUNDS: Final = 3
_LATENCY_POSTS: Final = 30_000


class Waited(msgspec.Struct):
    """Time from ready to written, in milliseconds."""

    p50: float
    p90: float
    p99: float
    p99_9: float = msgspec.field(name="p99.9")
    maximum: float


class Result(msgspec.Struct):
    samples: Samples
    waited: dict[str, list[Waited]]
    """By the name of the rate limit."""


class Paced(Case[Result]):
    name = "paced"
    title = "Paced at 10,000 posts per second, responses after 5 to 15 ms"
    result = Result

    def measure(self, extent: Extent) -> Result:
        with peers.aws() as aws, peers.connections(DELAYS_MS) as connections:
            samples = interleave(extent.rounds, _clients(aws, connections, extent))
            limits = {f"{RATE:,}/s": RATE, "none": UNLIMITED}
            waited: dict[str, list[Waited]] = {name: [] for name in limits}
            for _ in range(min(extent.rounds, _MAX_LATENCY_ROUNDS)):
                for name, limit in limits.items():
                    load = Load(extent.posts(_LATENCY_POSTS), 256, _IN_FLIGHT, 3_000, limit)
                    reported = run_reporting_client(python("bench.clients.ready_to_post"), connections, load)
                    waited[name].append(msgspec.json.decode(reported, type=Waited))
                    print(f"  limit {name:<10} ready to post: {reported.decode()} ms", flush=True)
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
                f"One room that lasts for the whole run, bodies of 256 B, up to {_IN_FLIGHT} connections, a section of "
                "some seconds in the middle; the worker's metrics are scraped once per second."
            ),
            table(["", *FIGURES], rows),
            (
                f"**Latency added by pacing**: deliveries become ready one by one, evenly, {READY_PER_SECOND:,} per "
                "second, as many as the limit allows. Measured is the time until the request has been written to its "
                "socket, including signature and TLS. Without a limit only the tick remains, which lets one wake-up "
                "handle many responses; the difference between the rows is added by the permits. Milliseconds, engine "
                "alone."
            ),
            table(["limit", "p50", "p90", "p99", "p99.9", "maximum"], waits),
        ]

    def targets(self, result: Result) -> list[Target]:
        taken = result.samples[WORKER]
        return [
            Target(f"worker's share of a core at {RATE:,} posts per second", _MAX_CORE_SHARE, core(taken)),
            Target("rate reached while paced", RATE * _MIN_RATE_SHARE, rate(taken), form="{:,.0f}/s", at_least=True),
        ]


def _clients(aws: peers.Aws, connections: peers.Connections, extent: Extent) -> dict[str, Callable[[], Sample]]:
    seconds = extent.seconds(_SECTION_SECONDS)

    def run_worker() -> Sample:
        with worker(aws, connections, rate=RATE, warm_up=peers.Workload(1, 1, RATE // 2)) as started:
            members = int(RATE * (_AFTER_SECONDS + seconds + 2))
            return started.run_section(peers.Workload(1, 1, members), after=_AFTER_SECONDS, seconds=seconds)

    load = Load(int(RATE * seconds), 256, _IN_FLIGHT, RATE // 2, RATE)
    return {WORKER: run_worker, ENGINE: partial(run_client, python("bench.clients.engine"), connections, load)}
