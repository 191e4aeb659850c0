"""The machine: its two cores, the CPU clock of any process, free ports, and the description stored with each result."""

import os
import platform
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

CHECKOUT: Final = Path(__file__).parents[1]
BUILD: Final = CHECKOUT / "bench" / "build"
CLIENT_CORE: Final = 0
PEER_CORE: Final = 1

_PACKAGES: Final = ("aioboto3", "aiobotocore", "aiohttp", "boto3", "msgspec", "uvloop")
_TOOLS: Final = (("wrk", "-v"), ("nginx", "-v"), ("node", "--version"))


class Missing(Exception):
    """A prerequisite of the benchmarks is missing; the message says what to install."""


class Machine(msgspec.Struct):
    cpu: str
    cores: int
    kernel: str
    python: str
    openssl: str
    versions: dict[str, str]


def describe() -> Machine:
    return Machine(
        cpu=_cpu_model(),
        cores=os.cpu_count() or 1,
        kernel=platform.release().partition("-")[0],
        python=platform.python_version(),
        openssl=ssl.OPENSSL_VERSION.split()[1],
        versions={name: version(name) for name in _PACKAGES} | dict(_tool_versions()) | _node_sdk(),
    )


def check() -> None:
    """Raises Missing if a prerequisite of all benchmarks is missing."""
    if not hasattr(os, "sched_getaffinity") or not {CLIENT_CORE, PEER_CORE} <= os.sched_getaffinity(0):
        raise Missing(f"the benchmarks need Linux and its cores {CLIENT_CORE} and {PEER_CORE}")
    if not shutil.which("taskset"):
        raise Missing("taskset is missing: apt-get install util-linux")


def pinned(core: int, command: Sequence[str | Path]) -> list[str]:
    return ["taskset", "--cpu-list", str(core), *map(str, command)]


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process so far, to the nanosecond (clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | 2)


def memory_kb(pid: int, field: str) -> int:
    """`field` of /proc/PID/status: VmRSS is the current, VmHWM the peak resident memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    assert found
    return int(found[1])


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _cpu_model() -> str:
    models = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return models[0] if models else platform.machine()


def _node_sdk() -> dict[str, str]:
    installed = BUILD / "node" / "node_modules" / "@aws-sdk" / "client-apigatewaymanagementapi" / "package.json"
    return {"Node SDK": msgspec.json.decode(installed.read_bytes())["version"]} if installed.exists() else {}


def _tool_versions() -> list[tuple[str, str]]:
    found = []
    for tool, option in _TOOLS:
        if shutil.which(tool):
            output = subprocess.run([tool, option], check=False, capture_output=True, text=True)  # noqa: S603
            number = re.search(r"\d+(\.\d+)+", output.stdout + output.stderr)
            found.append((tool, number[0] if number else "unknown"))
    return found
