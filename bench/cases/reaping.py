"""Removing gone connections: the cost of each, and the effect of a wave of them on the latency of posts."""

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Final

import msgspec

from bench import peers
from bench.case import Case, Extent, Target, table
from bench.programs import Load, instrumented_worker, python, run_client, worker
from bench.samples import Sample, Samples, core, cost, interleave, peer_core, rate, ratio

REAPER: Final = "the worker's reaper"
SDK: Final = "three SDK calls per connection"
JOINED_ROOMS: Final = 2
"""Per connection: `@all`, and another one."""
_CONNECTIONS: Final = {REAPER: 2_000, SDK: 800}
_WARM_UP: Final = 200
_MAX_COST: Final = 300.0
_MIN_SDK_RATIO: Final = 8.0

_RATE: Final = 10_000
_MEMBERS: Final = 200_000
_GONE: Final = 0.5
_DELAYS_MS: Final = (5, 15)
_WAVES: Final = {
    "none gone": (0.0, "posts"),
    "half gone, none removed": (_GONE, "posts-unreaped"),
    "half gone and removed": (_GONE, "posts"),
}
_MAX_ROUNDS: Final = 3
_MAX_P99_RATIO: Final = 1.05
_PERCENTILES: Final = (50.0, 99.0, 99.9)


class Wave(msgspec.Struct):
    """One broadcast: milliseconds from a post to its response; connections removed meanwhile; share of a core."""

    percentiles: dict[str, float]
    maximum: float
    removed: int
    rate: float
    core: float


class Result(msgspec.Struct):
    samples: Samples
    waves: dict[str, list[Wave]]


class Reaping(Case[Result]):
    name = "reaping"
    title = "Removing gone connections"
    result = Result

    def measure(self, extent: Extent) -> Result:
        with peers.aws() as aws:
            table_peer = peers.Table(aws, joined_rooms=JOINED_ROOMS)
            samples = interleave(extent.rounds, _clients(table_peer, extent))
        waves: dict[str, list[Wave]] = {name: [] for name in _WAVES}
        for _ in range(min(extent.rounds, _MAX_ROUNDS)):
            for name, (gone, instrument) in _WAVES.items():
                waves[name].append(_wave(extent.posts(_MEMBERS), gone, instrument))
                print(f"  {name:<32} {waves[name][-1]}", flush=True)
        return Result(samples, waves)

    def describe(self, result: Result) -> list[str]:
        samples = result.samples
        rows = [
            [
                name,
                f"{cost(taken):,.0f}",
                f"{rate(taken):,.0f}/s",
                f"{core(taken):.0%}",
                f"{peer_core(taken):.0%}",
                f"{ratio(taken, samples[REAPER]):.1f}",
            ]
            for name, taken in samples.items()
        ]
        waves = [
            [
                name,
                *(f"{median(run.percentiles[each] for run in runs):.1f} ms" for each in _names()),
                f"{max(run.maximum for run in runs):.0f} ms",
                f"{median(run.removed for run in runs):,.0f}",
                f"{median(run.rate for run in runs):,.0f}/s",
                f"{median(run.core for run in runs):.0%}",
            ]
            for name, runs in result.waves.items()
        ]
        return [
            (
                f"Each connection is in {JOINED_ROOMS} rooms, so five items are deleted for it. The worker's reaper "
                "handles up to 25 connections at a time and is paced, so it does not fill its core; its cost includes "
                "the idle time in between. The alternative makes three calls per connection with aioboto3's client, "
                "for eight connections concurrently."
            ),
            table(["", "CPU µs per connection", "rate", "client's core", "peer's core", "× the reaper"], rows),
            (
                f"**Effect of a wave on posts**: the whole worker, one room, limit {_RATE:,} posts per second, "
                f"responses after {_DELAYS_MS[0]} to {_DELAYS_MS[1]} ms. If half of the members are gone, half of the "
                "posts return 410, several thousand per second: far more than can be removed in that time. Measured is "
                "the time from a post to its response, for every post; percentiles are medians over the rounds, the "
                "maximum is that of all rounds."
            ),
            table(["members", *_names(), "maximum", "removed", "rate", "worker's core"], waves),
        ]

    def targets(self, result: Result) -> list[Target]:
        p99 = {name: median(run.percentiles["p99"] for run in runs) for name, runs in result.waves.items()}
        none_gone, _, removed = p99.values()
        return [
            Target("CPU µs per removed connection", _MAX_COST, cost(result.samples[REAPER]), form="{:,.0f}"),
            Target(
                "the same with the SDK, × the reaper's",
                _MIN_SDK_RATIO,
                ratio(result.samples[SDK], result.samples[REAPER]),
                form="{:.1f}",
                at_least=True,
            ),
            Target("p99 of posts, half gone and removed, × none gone", _MAX_P99_RATIO, removed / none_gone),
        ]


def _names() -> list[str]:
    return [f"p{percent:g}" for percent in _PERCENTILES]


def _clients(peer: peers.Table, extent: Extent) -> dict[str, Callable[[], Sample]]:
    programs = {REAPER: "bench.clients.reaper", SDK: "bench.clients.sdk_reaper"}
    return {
        name: partial(
            run_client, python(module), peer, Load(extent.posts(_CONNECTIONS[name]), 0, JOINED_ROOMS, _WARM_UP)
        )
        for name, module in programs.items()
    }


def _wave(members: int, gone: float, instrument: str) -> Wave:
    with (
        peers.aws() as aws,
        peers.connections(_DELAYS_MS, gone=gone) as connections,
        worker(
            aws,
            connections,
            program=instrumented_worker(instrument),
            rate=_RATE,
            warm_up=peers.Workload(1, 1, _RATE // 2),
        ) as started,
    ):
        with started.recording() as lines:
            sample = started.run(peers.Workload(1, 1, members, joined_rooms=JOINED_ROOMS))
        removed = int(aws.stats()["connections_queried"])
    milliseconds = sorted(float(line) for line in lines)
    return Wave(
        percentiles={
            name: milliseconds[int(len(milliseconds) * percent / 100)]
            for name, percent in zip(_names(), _PERCENTILES, strict=True)
        },
        maximum=milliseconds[-1],
        removed=removed,
        rate=sample.rate,
        core=sample.core,
    )
