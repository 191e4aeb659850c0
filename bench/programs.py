"""Runs one program against its peers and measures it: a client over a section, or a worker over a workload."""

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
from bench.processes import BenchmarkFailed, line_from, running, write_line
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
"""Posts per second: more than any core can send."""
_WARM_UP: Final = Workload(broadcasts=1, rooms=1, members=20_000)
_WRK_STARTS_SECONDS: Final = 0.7
_MAX_SECONDS: Final = 200.0
_QUIET_SECONDS: Final = 0.06
"""No requests to the peers' control interface for this time, in which the first post is made."""
_PAUSE_SECONDS: Final = (0.15, 0.2)
"""A completion is written within the shorter time; random, so that broadcasts do not align with periodic work."""


class _Measured(msgspec.Struct):
    posts: int
    seconds: float
    cpu_seconds: float


class Load(msgspec.Struct):
    """The arguments of a client program; see `clients.section`."""

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
    """`instrument` is `iterations`, `stacks`, `posts` or `posts-unreaped`."""
    return (*python("bench.instrumented_worker"), instrument, str(RECORDING))


def node() -> tuple[str | Path, ...]:
    """Node finds packages beside the program, so the program is copied there."""
    shutil.copy(CHECKOUT / "bench" / "clients" / "node" / "post.mjs", NODE)
    return ("node", NODE / "post.mjs")


def run_client(command: Sequence[str | Path], peer: Peer, load: Load) -> Sample:
    with running(
        (*command, *load.arguments(peer.url)), core=CLIENT_CORE, environ=ENVIRON, output=subprocess.PIPE
    ) as process:
        _expect_ready(process)
        peer.reset()
        peer_cpu = peer.cpu_seconds()
        write_line(process, "go")
        measured = msgspec.json.decode(line_from(process), type=_Measured)
        peer_cpu = peer.cpu_seconds() - peer_cpu
        counted = peer.posts()
    if counted != measured.posts:
        raise BenchmarkFailed(f"{command[-1]} made {measured.posts} posts, but its peer counted {counted}")
    return Sample(measured.posts, measured.seconds, measured.cpu_seconds, peer_cpu)


def run_reporting_client(command: Sequence[str | Path], peer: Peer, load: Load, *more: str) -> bytes:
    """Run a client that prints its own result, with `more` arguments. Returns the line that it prints."""
    with running(
        (*command, *load.arguments(peer.url), *more), core=CLIENT_CORE, environ=ENVIRON, output=subprocess.PIPE
    ) as process:
        _expect_ready(process)
        peer.reset()
        write_line(process, "go")
        return line_from(process).encode()


def _expect_ready(process: "subprocess.Popen[bytes]") -> None:
    line = line_from(process)
    if line != "ready":
        raise BenchmarkFailed(f"{process.args!r} printed {line!r} instead of 'ready'")


def run_wrk(peer: Peer, *, concurrency: int, body_bytes: int, seconds: float) -> Sample:
    """wrk does not signal when it is ready, so its section is measured from outside, some time after its start."""
    command = (
        *("wrk", "-t1", f"-c{concurrency}", f"-d{int(seconds + _WRK_STARTS_SECONDS) + 2}s"),
        *("-s", SINK / "post.lua", f"{peer.url}/@connections/L0SM9cOFvHcCIhw%3D", "--", str(body_bytes)),
    )
    with running(command, core=CLIENT_CORE) as process:
        time.sleep(_WRK_STARTS_SECONDS)
        return _measure_section(process.pid, peer, seconds, peer.cpu_seconds)


def _measure_section(pid: int, peer: Peer, seconds: float, peer_cpu_seconds: Callable[[], float]) -> Sample:
    peer.reset()
    began, cpu, peer_cpu = time.monotonic(), cpu_seconds(pid), peer_cpu_seconds()
    time.sleep(seconds)
    cpu, peer_cpu, posts = cpu_seconds(pid) - cpu, peer_cpu_seconds() - peer_cpu, peer.posts()
    return Sample(posts, time.monotonic() - began, cpu, peer_cpu)


class Worker:
    """A worker process that is ready and warmed up."""

    def __init__(self, process: "subprocess.Popen[bytes]", aws: Aws, connections: Connections) -> None:
        self.pid = process.pid
        self._process = process
        self._aws = aws
        self._connections = connections

    def run(self, workload: Workload) -> Sample:
        """Measure from the moment the queue is full to the last acknowledgement, by SQS's clock."""
        self._connections.reset()
        cpu, peer_cpu = cpu_seconds(self.pid), self._peer_cpu_seconds()
        self._aws.start(workload)
        deadline = time.monotonic() + _MAX_SECONDS
        while (stats := self._aws.stats())["deleted"] < workload.broadcasts:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise BenchmarkFailed(f"{stats['deleted']} of {workload.broadcasts} broadcasts were acknowledged")
            time.sleep(0.01)
        cpu, peer_cpu = cpu_seconds(self.pid) - cpu, self._peer_cpu_seconds() - peer_cpu
        posts = self._connections.posts()
        if posts != workload.deliveries:
            raise BenchmarkFailed(f"{workload.deliveries} posts were due, but the peer counted {posts}")
        return Sample(posts, stats["seconds"], cpu, peer_cpu)

    def run_section(self, workload: Workload, *, after: float, seconds: float) -> Sample:
        """Measure a section of a workload, which must be large enough. `after` is the section's start, in seconds."""
        self._aws.start(workload)
        time.sleep(after)
        sample = _measure_section(self.pid, self._connections, seconds, self._peer_cpu_seconds)
        if self._aws.stats()["deleted"] >= workload.broadcasts:
            raise BenchmarkFailed("the workload was too small for the section")
        return sample

    def time_to_first_post(self, workload: Workload) -> float:
        """Seconds from SQS's response with the message to the first post's arrival. Returns when the worker is idle."""
        self._connections.reset()
        self._aws.start(workload)
        time.sleep(_QUIET_SECONDS)
        deadline = time.monotonic() + _MAX_SECONDS
        while self._aws.stats()["deleted"] < workload.broadcasts:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise BenchmarkFailed("the broadcast was not acknowledged")
            time.sleep(0.02)
        time.sleep(random.uniform(*_PAUSE_SECONDS))
        posts = self._connections.posts()
        if posts != workload.deliveries:
            raise BenchmarkFailed(f"{workload.deliveries} posts were due, but the peer counted {posts}")
        return self._connections.first_post_at() - float(self._aws.stats()["received_at"])

    @contextmanager
    def recording(self) -> Iterator[list[str]]:
        """Let the instrument record during this block; the list then has its lines. See `instrumented_worker`."""
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
        raise BenchmarkFailed("the instrument has not written its recording")

    def operations(self) -> dict[str, int]:
        """Calls to SQS and DynamoDB in the last workload, by operation."""
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
    """`python -m worker`, ready and warmed up, with its metrics scraped once per second."""
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
    """The plain worker. It has no metrics and counts as ready when it has delivered its first broadcast."""
    program = (*python("bench.plain_worker"), *(("--claim",) if claims else ()))
    environ = _worker_environ(aws, connections, UNLIMITED, free_port())
    with running(program, core=CLIENT_CORE, environ=environ) as process:
        found = Worker(process, aws, connections)
        found.run(Workload(broadcasts=1, rooms=1, members=300))
        yield found


def _worker_environ(aws: Aws, connections: Connections, rate: int, port: int) -> Mapping[str, str]:
    """The defaults except for the addresses and the rate limit."""
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
        response = connection.getresponse()
        return response.status, response.read()
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
    raise BenchmarkFailed("the worker did not become ready")


@contextmanager
def _scraping(port: int) -> Iterator[None]:
    """Read /metrics once per second, as Prometheus would, but more often."""
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
