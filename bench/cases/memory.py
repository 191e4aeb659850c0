"""Memory: whether it grows with the size of a room."""

from statistics import median
from typing import Final

import msgspec

from bench import peers
from bench.case import Case, Extent, Target, table
from bench.programs import worker

SMALL: Final = 100_000
LARGE: Final = 1_000_000
_MAX_ROUNDS: Final = 3
_MAX_GROWTH: Final = 1.1


class Peak(msgspec.Struct):
    """Resident memory of one fresh process, in kB; `rate` in posts per second."""

    at_start: int
    peak: int
    rate: float


class Result(msgspec.Struct):
    peaks: dict[int, list[Peak]]
    """By the number of members of the room."""


class Memory(Case[Result]):
    name = "memory"
    title = "Memory for rooms of 100,000 and 1,000,000 members"
    result = Result

    def measure(self, extent: Extent) -> Result:
        peaks: dict[int, list[Peak]] = {SMALL: [], LARGE: []}
        for _ in range(min(extent.rounds, _MAX_ROUNDS)):
            for members, found in peaks.items():
                found.append(_peak(members))
                print(f"  {members:>9,} members  {found[-1].peak / 1024:.1f} MiB", flush=True)
        return Result(peaks)

    def describe(self, result: Result) -> list[str]:
        rows = [
            [
                f"{members:,}",
                f"{median(peak.at_start for peak in found) / 1024:.1f} MiB",
                f"{median(peak.peak for peak in found) / 1024:.1f} MiB",
                f"{median(peak.rate for peak in found):,.0f}/s",
            ]
            for members, found in result.peaks.items()
        ]
        return [
            (
                "The whole worker in a fresh process per room, delivering as fast as it can: peak resident memory "
                "(VmHWM), and resident memory when it was ready. Bodies of 256 B, 256 connections."
            ),
            table(["members", "when ready", "peak", "rate"], rows),
        ]

    def targets(self, result: Result) -> list[Target]:
        small, large = (median(peak.peak for peak in result.peaks[members]) for members in (SMALL, LARGE))
        return [Target(f"peak memory at {LARGE:,} members, × at {SMALL:,}", _MAX_GROWTH, large / small)]


def _peak(members: int) -> Peak:
    with peers.aws() as aws, peers.connections() as connections, worker(aws, connections, warm_up=None) as started:
        at_start = started.memory_kb("VmRSS")
        sample = started.run(peers.Workload(1, 1, members))
        return Peak(at_start, started.memory_kb("VmHWM"), sample.rate)
