"""The whole worker with rooms of five members: the cost of a broadcast in addition to its posts."""

import time
from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec

from bench import peers
from bench.case import FIGURES, Case, Extent, Target, figures, table
from bench.profiling import Profile, profile
from bench.programs import Load, instrumented_worker, python, run_client, worker
from bench.samples import Sample, Samples, cost, interleave, rate

WORKER: Final = "whole worker, rooms of five"
ENGINE: Final = "engine alone, one room"
MEMBERS: Final = 5
_BROADCASTS: Final = 6_000
_WARM_UP_BROADCASTS: Final = 2_000
_IN_FLIGHT: Final = 256
_PROFILE_SECONDS: Final = 12.0
_ASSUMED_RATE: Final = 30_000
"""More deliveries per second than can be reached, so that the queue lasts for the profile."""
_TARGET: Final = 10_000
_REQUIRED: Final = 5_000
_MIN_SHARE: Final = 0.01


class Result(msgspec.Struct):
    samples: Samples
    operations: dict[str, int]
    """Calls in the last round, by operation."""
    deliveries: int
    profile: Profile


class SmallRooms(Case[Result]):
    name = "small-rooms"
    title = "The whole worker, rooms of five members"
    result = Result

    def measure(self, extent: Extent) -> Result:
        workload = peers.Workload(extent.posts(_BROADCASTS), extent.posts(_BROADCASTS), MEMBERS)
        operations: dict[str, int] = {}
        with peers.aws() as aws, peers.connections() as connections:

            def run_worker() -> Sample:
                with worker(aws, connections, warm_up=_workload(_WARM_UP_BROADCASTS)) as started:
                    sample = started.run(workload)
                    operations.update(started.operations())
                    return sample

            load = Load(workload.deliveries, workload.data_bytes, _IN_FLIGHT, 20_000)
            clients: dict[str, Callable[[], Sample]] = {
                ENGINE: partial(run_client, python("bench.clients.engine"), connections, load),
                WORKER: run_worker,
            }
            samples = interleave(extent.rounds, clients)
            seconds = extent.seconds(_PROFILE_SECONDS)
            warm_up = _workload(_WARM_UP_BROADCASTS)
            with worker(aws, connections, program=instrumented_worker("stacks"), warm_up=warm_up) as started:
                aws.start(_workload(int(seconds + 2) * _ASSUMED_RATE // MEMBERS))
                with started.recording() as stacks:
                    time.sleep(seconds)
        return Result(samples, operations, workload.deliveries, profile(stacks))

    def describe(self, result: Result) -> list[str]:
        calls = [
            [name, f"{number:,}", f"{number / (result.deliveries / MEMBERS):.2f}"]
            for name, number in sorted(result.operations.items(), key=lambda item: -item[1])
        ]
        parts = [
            (
                "Every broadcast has its own id and room, is claimed, and its room's settings and members are read: "
                "only five members share these fixed costs. Bodies of 256 B."
            ),
            table(["", *FIGURES], [[name, *figures(taken)] for name, taken in result.samples.items()]),
            "**Calls to SQS and DynamoDB** for these deliveries:",
            table(["operation", "calls", "per broadcast"], calls),
        ]
        return parts + _describe_profile(result.profile, cost(result.samples[WORKER]))

    def targets(self, result: Result) -> list[Target]:
        reached = rate(result.samples[WORKER])
        return [
            Target("deliveries per second on one core", _TARGET, reached, form="{:,.0f}", at_least=True),
            Target("the same, required minimum", _REQUIRED, reached, form="{:,.0f}", at_least=True),
        ]


def _workload(broadcasts: int) -> peers.Workload:
    return peers.Workload(broadcasts, broadcasts, MEMBERS)


def _describe_profile(found: Profile, whole: float) -> list[str]:
    """`whole` is the worker's CPU microseconds per post."""
    functions = [
        [f"`{each.function}`", each.file, each.part, *_of(each.share, whole)]
        for each in found.functions
        if each.share >= _MIN_SHARE
    ]
    return [
        (
            f"**Profile**: {found.samples:,} samples of the stack, one per few milliseconds of the worker's CPU time "
            "(`bench/instrumented_worker.py`). Each is attributed to the innermost function of the project on the "
            "stack, so a function's share includes calls outside the project: TLS, the kernel, msgspec, asyncio. The "
            f"last column is that share of the {whole:.1f} µs above."
        ),
        table(
            ["part", "share", "CPU µs per post"], [[part, *_of(share, whole)] for part, share in found.parts.items()]
        ),
        table(["function", "file", "part", "share", "CPU µs per post"], functions, texts=3),
    ]


def _of(share: float, whole: float) -> tuple[str, str]:
    return f"{share:.1%}", f"{share * whole:.1f}"
