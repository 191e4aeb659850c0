"""Runs one program beside its peers and takes the figures: a client for a section, or a worker for a workload."""

import http.client
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from bench.machine import BUILD, CHECKOUT, CLIENT_CORE, cpu_seconds, free_port, memory_kb
from bench.peers import CA, SINK, Aws, Connections, Peer, Workload
from bench.processes import BenchmarkFailed, line_from, running, tell
from bench.samples import Sample

NODE: Final = BUILD / "node"
RECORDING: Final = BUILD / "recording"
CREDENTIALS: Final = {
    "AWS_ACCESS_KEY_ID": "ASIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "AWS_SESSION_TOKEN": "IQoJb3JpZ2luX2VjEA/+" * 50,
}
ENVIRON: Final = {
    **CREDENTIALS,
    "AWS_REGION": "eu-central-1",
    "AWS_DEFAULT_REGION": "eu-central-1",
    "AWS_CA_BUNDLE": str(CA),
    "NODE_EXTRA_CA_CERTS": str(CA),
    "NODE_NO_WARNINGS": "1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}
UNLIMITED: Final = 1_000_000
"""Posts a second: more than any core can."""
_WARM_UP: Final = Workload(broadcasts=1, rooms=1, members=20_000)
_WRK_STARTS_SECONDS: Final = 0.7
_LONGEST_SECONDS: Final = 200.0
_POSTED_SECONDS: Final = 0.06
"""So long nobody asks the peers anything: a first post is on its way."""
_PAUSE_SECONDS: Final = (0.15, 0.2)
"""A completion is written within the shorter time; random, so that no broadcast keeps step with anything periodic."""


class _Measured(msgspec.Struct):
    posts: int
    seconds: float
    cpu_seconds: float


class Load(msgspec.Struct):
    """What a client program is asked for; see `clients.section`."""

    posts: int
    body_bytes: int
    concurrency: int
    warm_up: int
    rate: float = UNLIMITED

    def arguments(self, url: str) -> list[str]:
        numbers = (self.posts, self.body_bytes, self.concurrency, self.warm_up, self.rate)
        return [url, *map(str, numbers)]


def python(module: str) -> tuple[str, ...]:
    return (sys.executable, "-m", module)


def instrumented_worker(instrument: str) -> tuple[str, ...]:
    """`turns`, `stacks`, `posts` or `posts-unreaped`."""
    return (*python("bench.instrumented_worker"), instrument, str(RECORDING))


def node() -> tuple[str | Path, ...]:
    """Node finds packages beside the program, so the program is put beside them."""
    shutil.copy(CHECKOUT / "bench" / "clients" / "node" / "post.mjs", NODE)
    return ("node", NODE / "post.mjs")


def run_client(command: Sequence[str | Path], peer: Peer, load: Load) -> Sample:
    with running(
        (*command, *load.arguments(peer.url)), core=CLIENT_CORE, environ=ENVIRON, output=subprocess.PIPE
    ) as process:
        _expect_ready(process)
        peer.reset()
        peer_cpu = peer.cpu_seconds()
        tell(process, "go")
        measured = msgspec.json.decode(line_from(process), type=_Measured)
        peer_cpu = peer.cpu_seconds() - peer_cpu
        seen = peer.posts()
    if seen != measured.posts:
        raise BenchmarkFailed(f"{command[-1]} made {measured.posts} posts, {seen} have arrived")
    return Sample(measured.posts, measured.seconds, measured.cpu_seconds, peer_cpu)


def ask_client(command: Sequence[str | Path], peer: Peer, load: Load, *more: str) -> bytes:
    """For a client that has something else to tell, and perhaps takes `more` arguments."""
    with running(
        (*command, *load.arguments(peer.url), *more), core=CLIENT_CORE, environ=ENVIRON, output=subprocess.PIPE
    ) as process:
        _expect_ready(process)
        peer.reset()
        tell(process, "go")
        return line_from(process).encode()


def _expect_ready(process: "subprocess.Popen[bytes]") -> None:
    line = line_from(process)
    if line != "ready":
        raise BenchmarkFailed(f"{process.args!r} said {line!r}")


def run_wrk(peer: Peer, *, concurrency: int, body_bytes: int, seconds: float) -> Sample:
    """wrk says nothing at its start, so its section lies between two looks from outside, after it has connected."""
    command = (
        *("wrk", "-t1", f"-c{concurrency}", f"-d{int(seconds + _WRK_STARTS_SECONDS) + 2}s"),
        *("-s", SINK / "post.lua", f"{peer.url}/@connections/L0SM9cOFvHcCIhw%3D", "--", str(body_bytes)),
    )
    with running(command, core=CLIENT_CORE) as process:
        time.sleep(_WRK_STARTS_SECONDS)
        return _look_at(process.pid, peer, seconds, peer.cpu_seconds)


def _look_at(pid: int, peer: Peer, seconds: float, peer_cpu_seconds: Callable[[], float]) -> Sample:
    peer.reset()
    began, cpu, peer_cpu = time.monotonic(), cpu_seconds(pid), peer_cpu_seconds()
    time.sleep(seconds)
    cpu, peer_cpu, posts = cpu_seconds(pid) - cpu, peer_cpu_seconds() - peer_cpu, peer.posts()
    return Sample(posts, time.monotonic() - began, cpu, peer_cpu)


class Worker:
    """A worker's process, up and warm."""

    def __init__(self, process: "subprocess.Popen[bytes]", aws: Aws, connections: Connections) -> None:
        self.pid = process.pid
        self._process = process
        self._aws = aws
        self._connections = connections

    def run(self, workload: Workload) -> Sample:
        """From the moment the queue is full to the last acknowledgement, as SQS sees them."""
        self._connections.reset()
        cpu, peer_cpu = cpu_seconds(self.pid), self._peer_cpu_seconds()
        self._aws.start(workload)
        deadline = time.monotonic() + _LONGEST_SECONDS
        while (stats := self._aws.stats())["deleted"] < workload.broadcasts:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise BenchmarkFailed(f"{stats['deleted']} of {workload.broadcasts} broadcasts were acknowledged")
            time.sleep(0.01)
        cpu, peer_cpu = cpu_seconds(self.pid) - cpu, self._peer_cpu_seconds() - peer_cpu
        posts = self._connections.posts()
        if posts != workload.deliveries:
            raise BenchmarkFailed(f"{workload.deliveries} members, {posts} posts have arrived")
        return Sample(posts, stats["seconds"], cpu, peer_cpu)

    def run_section(self, workload: Workload, *, after: float, seconds: float) -> Sample:
        """`seconds` in the middle of a workload, which must be large enough; `after` is when, from its start."""
        self._aws.start(workload)
        time.sleep(after)
        sample = _look_at(self.pid, self._connections, seconds, self._peer_cpu_seconds)
        if self._aws.stats()["deleted"] >= workload.broadcasts:
            raise BenchmarkFailed("the workload was too small for the section")
        return sample

    def time_to_first_post(self, workload: Workload) -> float:
        """Seconds from SQS's response with the message to the first post's arrival; returns when all is quiet again."""
        self._connections.reset()
        self._aws.start(workload)
        time.sleep(_POSTED_SECONDS)
        deadline = time.monotonic() + _LONGEST_SECONDS
        while self._aws.stats()["deleted"] < workload.broadcasts:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise BenchmarkFailed("the broadcast was not acknowledged")
            time.sleep(0.02)
        time.sleep(random.uniform(*_PAUSE_SECONDS))
        posts = self._connections.posts()
        if posts != workload.deliveries:
            raise BenchmarkFailed(f"{workload.deliveries} members, {posts} posts have arrived")
        return self._connections.first_post_at() - float(self._aws.stats()["received_at"])

    @contextmanager
    def recording(self) -> Iterator[list[str]]:
        """What its instrument records within this block, line by line; see `instrumented_worker`."""
        lines: list[str] = []
        RECORDING.unlink(missing_ok=True)
        os.kill(self.pid, signal.SIGUSR1)
        yield lines
        os.kill(self.pid, signal.SIGUSR2)
        for _ in range(100):
            if RECORDING.exists():
                lines += RECORDING.read_text().splitlines()
                return
            time.sleep(0.05)
        raise BenchmarkFailed("the instrument has written nothing")

    def operations(self) -> dict[str, int]:
        """Calls of SQS and DynamoDB in the last workload."""
        return {name: calls for name, calls in self._aws.stats()["operations"].items() if calls}

    def memory_kb(self, field: str) -> int:
        return memory_kb(self.pid, field)

    def _peer_cpu_seconds(self) -> float:
        return self._aws.cpu_seconds() + self._connections.cpu_seconds()


@contextmanager
def worker(
    aws: Aws,
    connections: Connections,
    *,
    program: Sequence[str] = python("worker"),
    rate: int = UNLIMITED,
    warm_up: Workload | None = _WARM_UP,
) -> Iterator[Worker]:
    """`python -m worker` with its metrics scraped once a second, ready and warmed up."""
    port = free_port()
    log = BUILD / "worker.log"
    with (
        log.open("wb") as output,
        running(
            program, core=CLIENT_CORE, environ=_worker_environ(aws, connections, rate, port), output=output
        ) as process,
    ):
        found = Worker(process, aws, connections)
        try:
            _wait_until_ready(process, port)
            with _scraping(port):
                if warm_up is not None:
                    found.run(warm_up)
                yield found
        except BenchmarkFailed as failed:
            failed.add_note(log.read_text()[-2_000:])
            raise


@contextmanager
def plain_worker(aws: Aws, connections: Connections, *, claims: bool = False) -> Iterator[Worker]:
    """The peer of the worker: it has no metrics and is ready when its first broadcast is done."""
    program = (*python("bench.plain_worker"), *(("--claim",) if claims else ()))
    environ = _worker_environ(aws, connections, UNLIMITED, free_port())
    with running(program, core=CLIENT_CORE, environ=environ) as process:
        found = Worker(process, aws, connections)
        found.run(Workload(broadcasts=1, rooms=1, members=300))
        yield found


def _worker_environ(aws: Aws, connections: Connections, rate: int, port: int) -> Mapping[str, str]:
    """The defaults but for the addresses and the ceiling of the rate."""
    return {
        **ENVIRON,
        "AWS_ENDPOINT_URL": aws.url,
        "GATECAST_QUEUE_URL": f"{aws.url}/000000000000/broadcasts",
        "GATECAST_TABLE": "gatecast",
        "GATECAST_CONNECTIONS_ENDPOINT": connections.url,
        "GATECAST_MAX_POSTS_PER_SECOND": str(rate),
        "GATECAST_HTTP_PORT": str(port),
    }


def _get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _wait_until_ready(process: "subprocess.Popen[bytes]", port: int) -> None:
    for _ in range(300):
        if process.poll() is not None:
            raise BenchmarkFailed(f"the worker ended with {process.returncode}")
        try:
            if _get(port, "/readyz")[0] == http.HTTPStatus.OK:
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise BenchmarkFailed("the worker does not become ready")


@contextmanager
def _scraping(port: int) -> Iterator[None]:
    """Read /metrics once a second, as Prometheus would, only more often."""
    ended = threading.Event()
    failures: list[Any] = []

    def scrape() -> None:
        while not ended.wait(1.0):
            try:
                status, _ = _get(port, "/metrics")
            except OSError as error:
                failures.append(error)
                return
            if status != http.HTTPStatus.OK:
                failures.append(status)
                return

    scraper = threading.Thread(target=scrape)
    scraper.start()
    try:
        yield
    finally:
        ended.set()
        scraper.join()
    if failures:
        raise BenchmarkFailed(f"/metrics: {failures[0]}")
