"""The soak test: all faults at a low rate for a long time. No member is missed, and the worker leaks no resources.

`make soak` takes ten minutes (GATECAST_SOAK_SECONDS); in `make test` it runs for seconds, to check the test itself.
"""

import asyncio
import itertools
import os
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from gatecast import Broadcast, encode
from gatecast.emulator.faults import (
    INTERNAL_ERROR,
    NOT_JSON,
    THROTTLED,
    UNAVAILABLE,
    CannedResponse,
    Delay,
    Reset,
    Rule,
    Stall,
)
from local.backend import Backend
from local.processes import free_port
from tests.chaos.endpoint import CHECKOUT
from tests.chaos.harness import Harness, Room
from tests.chaos.results import RunResult, record
from tests.chaos.scale import SEED, rng
from tests.chaos.service_proxy import Cut, ServiceFault, ServiceProxy, ServiceResponse
from tests.members import connection_ids, write_members
from tests.worker_process import WorkerProcess

SECONDS: Final = float(os.environ.get("GATECAST_SOAK_SECONDS", "3"))
LONG: Final = SECONDS >= 300
ROOMS: Final = 20
MEMBERS: Final = 100
BROADCASTS_PER_SECOND: Final = 10
TIMEOUT_SECONDS: Final = 180
MAX_GROWTH_MB: Final = 16
MAX_GROWTH_FILES: Final = 20
MAX_GROWTH_TASKS: Final = 20

RULES: Final = (
    Rule(fault=Stall(seconds=30), share=0.00002, of="calls"),
    Rule(fault=THROTTLED, share=0.002, of="calls"),
    Rule(fault=UNAVAILABLE, share=0.002, of="calls"),
    Rule(fault=INTERNAL_ERROR, share=0.001, of="calls"),
    Rule(fault=NOT_JSON, share=0.001, of="calls"),
    Rule(fault=CannedResponse(status=403, error_type="ForbiddenException"), share=0.0001, of="calls"),
    Rule(fault=Reset(), share=0.002, of="calls"),
    Rule(fault=Reset(cut="headers"), share=0.001, of="calls"),
    Rule(fault=Delay(seconds=0.5), share=0.005, of="calls"),
)
SERVICE_FAULTS: Final[tuple[ServiceFault, ...]] = (
    ServiceResponse.error(500, "InternalServerError"),
    ServiceResponse.error(400, "ThrottlingException"),
    ServiceResponse(502, "<html></html>"),
    Cut("before"),
    Cut("after"),
)


class Sample(NamedTuple):
    """The resources that a worker uses."""

    megabytes: float
    files: int
    tasks: int
    threads: int


@dataclass
class Samples:
    """Samples with their times, in seconds since the start."""

    taken: list[tuple[float, Sample]] = field(default_factory=list)

    def growth(self) -> Sample:
        """Growth from the first to the last third, by medians, without the first quarter of all samples (warm-up)."""
        steady = [sample for _, sample in self.taken[len(self.taken) // 4 :]]
        third = max(1, len(steady) // 3)
        early, late = steady[:third], steady[-third:]
        grown = (
            median(each[index] for each in late) - median(each[index] for each in early)
            for index in range(len(Sample._fields))
        )
        megabytes, files, tasks, threads = grown
        return Sample(round(megabytes, 1), int(files), int(tasks), int(threads))


def sample(worker: WorkerProcess, tasks_file: Path) -> Sample:
    process = Path("/proc") / str(worker.pid)
    fields = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    tasks = tasks_file.read_text() if tasks_file.exists() else ""
    return Sample(
        int(fields["VmRSS"].split()[0]) / 1024,
        len(list((process / "fd").iterdir())),
        int(tasks or "0"),
        int(fields["Threads"]),
    )


def launch_observed(harness: Harness, proxy: ServiceProxy, tasks_file: Path) -> WorkerProcess:
    port = free_port()
    worker = WorkerProcess.start(
        [sys.executable, "-m", "tests.chaos.observed_worker", str(tasks_file)],
        environment={
            **harness.backend.environment(),
            **proxy.environment(),
            "GATECAST_CONNECTIONS_ENDPOINT": harness.endpoint.url,
            "GATECAST_VISIBILITY_SECONDS": "20",
            "GATECAST_HTTP_PORT": str(port),
        },
        log=harness.directory / "soak-worker.log",
        directory=CHECKOUT,
    )
    worker.port = port
    harness.workers.append(worker)
    return worker


def service_faults(proxy: ServiceProxy) -> None:
    """One in a hundred calls fails, with each fault in turn."""
    random = rng("soak")
    faults = itertools.cycle(SERVICE_FAULTS)
    proxy.fault = lambda _operation: next(faults) if random.random() < 0.01 else None


def publish(harness: Harness, room: Room, number: int) -> None:
    """All broadcasts have the same data, so that the endpoint's counts stay small."""
    broadcast = Broadcast(id=f"{room.name}-{number}", room=room.name, data="soak")
    harness.publish(broadcast)
    if number % 7 == 0:
        harness.publish(broadcast)  # a duplicate
    if number % 23 == 0:
        harness.sqs.send_message(QueueUrl=harness.backend.queues.url, MessageBody=encode(broadcast)[:-2])


async def soak(harness: Harness, worker: WorkerProcess, tasks_file: Path, rooms: list[Room]) -> tuple[int, Samples]:
    """Returns the number of broadcasts published, and the worker's resource samples."""
    samples = Samples()
    started_at = time.monotonic()
    sampled_at = started_at
    number = 0
    while True:
        publish(harness, rooms[number % len(rooms)], number)
        number += 1
        now = time.monotonic()
        if now - sampled_at >= min(5.0, SECONDS / 10):
            sampled_at = now
            samples.taken.append((now - started_at, sample(worker, tasks_file)))
        if now - started_at >= SECONDS:
            return number, samples
        await asyncio.sleep(max(0.0, started_at + number / BROADCASTS_PER_SECOND - time.monotonic()))


async def test_soak_without_misses_or_leaks(harness: Harness, chaos_backend: Backend, tmp_path: Path) -> None:
    rooms = [
        Room(f"soak-{index}-{uuid.uuid4().hex[:6]}", connection_ids(MEMBERS, f"s{index}-")) for index in range(ROOMS)
    ]
    for index, room in enumerate(rooms):
        write_members(harness.dynamodb, harness.backend.table, room.name, room.ids, shards=2 if index % 5 == 0 else 1)
    tasks_file = tmp_path / "tasks"
    await harness.endpoint.configure(*RULES, seed=SEED, latency_seconds=0.01)
    async with ServiceProxy.serving(chaos_backend.ministack.url) as proxy:
        service_faults(proxy)
        worker = launch_observed(harness, proxy, tasks_file)
        published, samples = await soak(harness, worker, tasks_file, rooms)
        await harness.wait_until_drained(seconds=TIMEOUT_SECONDS)
        summary = await harness.endpoint.summary()
    counts = await harness.endpoint.counts("soak")
    expected = {each: published // ROOMS for room in rooms for each in room.ids}
    missing = sum(max(0, count - counts.delivered.get(each, 0)) for each, count in expected.items())
    delivered = sum(counts.delivered.values())
    growth = samples.growth()
    last = samples.taken[-1][1]
    letters = [letter for letter in harness.dead_letters() if not letter.reason.startswith("poison")]
    record(
        RunResult(
            run=f"soak of {SECONDS / 60:.0f} minutes",
            members=published * MEMBERS,
            missing=missing,
            repeated=max(0, delivered - published * MEMBERS),
            allowed=0,
            dead_letters=len(letters),
            seconds=harness.elapsed_seconds,
            notes=f"{summary.posts:,} posts, {proxy.faults} service failures; at the end {last.megabytes:.0f} MB, "
            f"{last.files} files, {last.tasks} tasks, {last.threads} threads; growth {growth.megabytes:+.1f} MB, "
            f"{growth.files:+d} files, {growth.tasks:+d} tasks",
        )
    )
    assert worker.exit_code is None
    assert missing == 0
    assert delivered == published * MEMBERS
    assert not letters
    if LONG:
        assert growth.megabytes <= MAX_GROWTH_MB
        assert growth.files <= MAX_GROWTH_FILES
        assert growth.tasks <= MAX_GROWTH_TASKS
        assert growth.threads <= 1
