"""The cost of observability: the share of exporter, counters and logger in the worker's CPU time at full load."""

import time
from typing import Final

import msgspec

from bench import peers
from bench.case import Case, Extent, Target, table
from bench.profiling import ObservabilityShares, observability_shares
from bench.programs import instrumented_worker, worker

_SECONDS: Final = 20.0
_LARGE: Final = "one large room"
_FIVES: Final = "rooms of five"
_ASSUMED_RATES: Final = {_LARGE: 100_000, _FIVES: 30_000}
"""More deliveries per second than can be reached, so that the queue lasts."""
_MAX_SHARE: Final = 0.02


class Result(msgspec.Struct):
    seconds: float
    loads: dict[str, ObservabilityShares]


class Observability(Case[Result]):
    name = "observability"
    title = "The cost of metrics and log lines"
    result = Result

    def measure(self, extent: Extent) -> Result:
        seconds = extent.seconds(_SECONDS)
        loads = {}
        for name, assumed_rate in _ASSUMED_RATES.items():
            deliveries = int((seconds + 3) * assumed_rate)
            workload = (
                peers.Workload(1, 1, deliveries)
                if name == _LARGE
                else peers.Workload(deliveries // 5, deliveries // 5, 5)
            )
            with (
                peers.aws() as aws,
                peers.connections() as connections,
                worker(aws, connections, program=instrumented_worker("stacks")) as started,
            ):
                aws.start(workload)
                time.sleep(1)
                with started.recording() as stacks:
                    time.sleep(seconds)
            loads[name] = observability_shares(stacks)
            print(f"  {name:<16} {loads[name]}", flush=True)
        return Result(seconds, loads)

    def describe(self, result: Result) -> list[str]:
        names = list(next(iter(result.loads.values())).shares)
        rows = [
            [name, f"{load.samples:,}", *(f"{load.shares[each]:.1%}" for each in names), f"{load.share:.1%}"]
            for name, load in result.loads.items()
        ]
        return [
            (
                "The whole worker at full load, scraped once per second, its log written to a file: samples of the "
                f"stack over {result.seconds:.0f} s. A sample with a function of the exporter, the counters or the "
                "logger on its stack is attributed to it. A room of five has one log line per five deliveries; a large "
                "room has one for all."
            ),
            table(["load", "samples", *names, "all"], rows),
        ]

    def targets(self, result: Result) -> list[Target]:
        return [
            Target(f"CPU share of metrics and log lines, {name}", _MAX_SHARE, load.share, form="{:.1%}")
            for name, load in result.loads.items()
        ]
