"""Everything that can go wrong, at a low rate, for a long time: nobody is missed, and the worker does not grow.

`make soak` takes ten minutes (GATECAST_SOAK_SECONDS); with all other tests it is a short look at whether it would work.
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
from local.backend import Backend
from local.gateway.faults import INTERNAL_ERROR, NOT_JSON, THROTTLED, UNAVAILABLE, Answer, Delay, Reset, Rule, Stall
from local.processes import free_port
from tests.chaos.arena import Arena, Room
from tests.chaos.endpoint import CHECKOUT
from tests.chaos.results import Figures, record
from tests.chaos.rooms import connection_ids, write_members
from tests.chaos.service_proxy import Answered, Cut, ServiceFault, ServiceProxy
from tests.chaos.sizes import SEED, rng
from tests.worker_process import WorkerProcess

SECONDS: Final = float(os.environ.get("GATECAST_SOAK_SECONDS", "3"))
LONG: Final = SECONDS >= 300
ROOMS: Final = 20
MEMBERS: Final = 100
BROADCASTS_PER_SECOND: Final = 10
PATIENCE_SECONDS: Final = 180
MAY_GROW_MB: Final = 16
MAY_GROW_FILES: Final = 20
MAY_GROW_TASKS: Final = 20

RULES: Final = (
    Rule(fault=Stall(seconds=30), share=0.00002, of="calls"),
    Rule(fault=THROTTLED, share=0.002, of="calls"),
    Rule(fault=UNAVAILABLE, share=0.002, of="calls"),
    Rule(fault=INTERNAL_ERROR, share=0.001, of="calls"),
    Rule(fault=NOT_JSON, share=0.001, of="calls"),
    Rule(fault=Answer(status=403, error_type="ForbiddenException"), share=0.0001, of="calls"),
    Rule(fault=Reset(), share=0.002, of="calls"),
    Rule(fault=Reset(cut="headers"), share=0.001, of="calls"),
    Rule(fault=Delay(seconds=0.5), share=0.005, of="calls"),
)
SERVICE_FAULTS: Final[tuple[ServiceFault, ...]] = (
    Answered.error(500, "InternalServerError"),
    Answered.error(400, "ThrottlingException"),
    Answered(502, "<html></html>"),
    Cut("before"),
    Cut("after"),
)


class Sample(NamedTuple):
    """What a worker takes up."""

    megabytes: float
    files: int
    tasks: int
    threads: int


@dataclass
class Samples:
    """`steady` are those since everything has been tried once."""

    taken: list[tuple[float, Sample]] = field(default_factory=list)

    def growth(self) -> Sample:
        """From the first third of the steady ones to the last, by their medians."""
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


def launch_observed(arena: Arena, proxy: ServiceProxy, tasks_file: Path) -> WorkerProcess:
    port = free_port()
    worker = WorkerProcess.start(
        [sys.executable, "-m", "tests.chaos.observed_worker", str(tasks_file)],
        environment={
            **arena.backend.environment(),
            **proxy.environment(),
            "GATECAST_CONNECTIONS_ENDPOINT": arena.endpoint.url,
            "GATECAST_VISIBILITY_SECONDS": "20",
            "GATECAST_HTTP_PORT": str(port),
        },
        log=arena.directory / "soak-worker.log",
        directory=CHECKOUT,
    )
    worker.port = port
    arena.workers.append(worker)
    return worker


def service_faults(proxy: ServiceProxy) -> None:
    """One call in a hundred fails."""
    thrown = rng("soak")
    ways = itertools.cycle(SERVICE_FAULTS)
    proxy.fault = lambda _operation: next(ways) if thrown.random() < 0.01 else None


def publish(arena: Arena, room: Room, number: int) -> None:
    """All have the same data, so that counts stay small."""
    broadcast = Broadcast(id=f"{room.name}-{number}", room=room.name, data="soak")
    arena.publish(broadcast)
    if number % 7 == 0:
        arena.publish(broadcast)  # once more: a duplicate
    if number % 23 == 0:
        arena.sqs.send_message(QueueUrl=arena.backend.queues.url, MessageBody=encode(broadcast)[:-2])


async def soak(arena: Arena, worker: WorkerProcess, tasks_file: Path, rooms: list[Room]) -> tuple[int, Samples]:
    """How many broadcasts were published, and what the worker took up meanwhile."""
    samples = Samples()
    started_at = time.monotonic()
    sampled_at = started_at
    number = 0
    while True:
        publish(arena, rooms[number % len(rooms)], number)
        number += 1
        now = time.monotonic()
        if now - sampled_at >= min(5.0, SECONDS / 10):
            sampled_at = now
            samples.taken.append((now - started_at, sample(worker, tasks_file)))
        if now - started_at >= SECONDS:
            return number, samples
        await asyncio.sleep(max(0.0, started_at + number / BROADCASTS_PER_SECOND - time.monotonic()))


async def test_it_does_not_grow(arena: Arena, chaos_backend: Backend, tmp_path: Path) -> None:
    rooms = [
        Room(f"soak-{index}-{uuid.uuid4().hex[:6]}", connection_ids(MEMBERS, f"s{index}-")) for index in range(ROOMS)
    ]
    for index, room in enumerate(rooms):
        write_members(arena.dynamodb, arena.backend.table, room.name, room.ids, shards=2 if index % 5 == 0 else 1)
    tasks_file = tmp_path / "tasks"
    await arena.endpoint.behave(*RULES, seed=SEED, latency_seconds=0.01)
    async with ServiceProxy.serving(chaos_backend.ministack.url) as proxy:
        service_faults(proxy)
        worker = launch_observed(arena, proxy, tasks_file)
        published, samples = await soak(arena, worker, tasks_file, rooms)
        await arena.drained(seconds=PATIENCE_SECONDS)
        summary = await arena.endpoint.summary()
    counts = await arena.endpoint.counts("soak")
    expected = {each: published // ROOMS for room in rooms for each in room.ids}
    missing = sum(max(0, least - counts.delivered.get(each, 0)) for each, least in expected.items())
    delivered = sum(counts.delivered.values())
    growth = samples.growth()
    last = samples.taken[-1][1]
    letters = [letter for letter in arena.dead_letters() if not letter.reason.startswith("poison")]
    record(
        Figures(
            run=f"soak of {SECONDS / 60:.0f} minutes",
            members=published * MEMBERS,
            missing=missing,
            repeated=max(0, delivered - published * MEMBERS),
            allowed=0,
            dead_letters=len(letters),
            seconds=arena.seconds,
            notes=f"{summary.posts:,} posts, {proxy.faults} failures of services; at the end {last.megabytes:.0f} MB, "
            f"{last.files} files, {last.tasks} tasks, {last.threads} threads; growth {growth.megabytes:+.1f} MB, "
            f"{growth.files:+d} files, {growth.tasks:+d} tasks",
        )
    )
    assert worker.exit_code is None
    assert missing == 0
    assert delivered == published * MEMBERS
    assert not letters
    if LONG:
        assert growth.megabytes <= MAY_GROW_MB
        assert growth.files <= MAY_GROW_FILES
        assert growth.tasks <= MAY_GROW_TASKS
        assert growth.threads <= 1
