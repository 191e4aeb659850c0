"""Child processes that end with their `with` block, each pinned to a core."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from bench.machine import CHECKOUT, pinned

_MAX_SECONDS: Final = 300.0


class BenchmarkFailed(Exception):
    """A measurement failed or cannot be trusted."""


@contextmanager
def running(
    command: Sequence[str | Path],
    *,
    core: int,
    environ: Mapping[str, str] | None = None,
    directory: Path = CHECKOUT,
    output: IO[bytes] | int = subprocess.DEVNULL,
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run `command`; kill it at the end of the block, or after `_MAX_SECONDS` in any case.

    It is killed because nothing after the block belongs to the measurement; the worker's drain has its own tests.
    """
    with subprocess.Popen(  # noqa: S603 - commands are the benchmarks' own
        pinned(core, command),
        cwd=directory,
        env={
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": os.environ.get("HOME", "/"),
            **(environ or {}),
        },
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output if output != subprocess.PIPE else None,
    ) as process:
        watchdog = threading.Timer(_MAX_SECONDS, process.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()
            process.kill()


def line_from(process: "subprocess.Popen[bytes]") -> str:
    """The next line of the process's output. Raises BenchmarkFailed if the process ends instead."""
    assert process.stdout
    line = process.stdout.readline().decode()
    if not line:
        raise BenchmarkFailed(f"{process.args!r} ended with {process.wait()}")
    return line.strip()


def write_line(process: "subprocess.Popen[bytes]", line: str) -> None:
    assert process.stdin
    process.stdin.write(f"{line}\n".encode())
    process.stdin.flush()
