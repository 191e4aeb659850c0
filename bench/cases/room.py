"""The whole worker, from the queue to the acknowledgement, with one large room."""

from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec

from bench import peers
from bench.case import FIGURES, Case, Extent, Target, figures, table
from bench.programs import Load, plain_worker, python, run_client, worker
from bench.samples import Sample, Samples, interleave, ratio

WORKER: Final = "whole worker"
ENGINE: Final = "engine alone"
PLAIN: Final = "plain aioboto3 worker"

MEMBERS: Final = 100_000
PLAIN_MEMBERS: Final = 2_000
_SIZES: Final = (256, 4096)
_IN_FLIGHT: Final = 256
_MAX_ENGINE_RATIO: Final = 1.5
_MIN_PLAIN_RATIO: Final = 20


class Result(msgspec.Struct):
    members: int
    plain_members: int
    samples: dict[int, Samples]
    """By body size in bytes."""


class Room(Case[Result]):
    name = "room"
    title = "The whole worker, one large room"
    result = Result

    def measure(self, extent: Extent) -> Result:
        found = {}
        for body_bytes in _SIZES:
            print(f" {body_bytes} B", flush=True)
            with peers.aws() as aws, peers.connections() as connections:
                found[body_bytes] = interleave(extent.rounds, _clients(aws, connections, body_bytes))
        return Result(MEMBERS, PLAIN_MEMBERS, found)

    def describe(self, result: Result) -> list[str]:
        parts = [
            (
                "From the queue to the acknowledgement: receive, claim, read pages, post, checkpoint, delete; metrics "
                f"are scraped once per second. The room has {result.members:,} members, as many as the engine alone "
                f"posts to, with the same {_IN_FLIGHT} connections. The plain worker (`bench/plain_worker.py`: a "
                f"semaphore and `gather`) does the same for {result.plain_members:,} members. Both mock servers share "
                "the peers' core."
            ),
        ]
        for body_bytes, samples in result.samples.items():
            rows = [[name, *figures(taken), f"{ratio(taken, samples[ENGINE]):.2f}"] for name, taken in samples.items()]
            parts.append(f"**Bodies of {body_bytes:,} B:**")
            parts.append(table(["", *FIGURES, "× engine"], rows))
        return parts

    def targets(self, result: Result) -> list[Target]:
        found = []
        for body_bytes, samples in result.samples.items():
            where = f"{result.members:,} members, {body_bytes:,} B"
            found.append(
                Target(
                    f"worker's CPU per post, × the engine's ({where})",
                    _MAX_ENGINE_RATIO,
                    ratio(samples[WORKER], samples[ENGINE]),
                )
            )
            found.append(
                Target(
                    f"plain aioboto3 worker's CPU per post, × the worker's ({where})",
                    _MIN_PLAIN_RATIO,
                    ratio(samples[PLAIN], samples[WORKER]),
                    form="{:.1f}",
                    at_least=True,
                )
            )
        return found


def _clients(aws: peers.Aws, connections: peers.Connections, body_bytes: int) -> dict[str, Callable[[], Sample]]:
    def run_worker() -> Sample:
        with worker(aws, connections) as started:
            return started.run(peers.Workload(1, 1, MEMBERS, body_bytes))

    def run_plain() -> Sample:
        with plain_worker(aws, connections) as started:
            return started.run(peers.Workload(1, 1, PLAIN_MEMBERS, body_bytes))

    load = Load(MEMBERS, body_bytes, _IN_FLIGHT, 20_000)
    return {
        ENGINE: partial(run_client, python("bench.clients.engine"), connections, load),
        WORKER: run_worker,
        PLAIN: run_plain,
    }
