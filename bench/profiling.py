"""A profile of a worker from samples of its stack: its CPU time by part of the work and by function."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec

_FRAME: Final = re.compile(r"(?P<function>.+) \((?P<file>[^()]+)\)")
_PROJECT: Final = ("worker/", "gatecast/")
_ENTRY: Final = "worker/__main__.py"

_LOOP: Final = "event loop: uvloop, tasks, timers"
_LOG: Final = "log lines"
_CALLS: Final = "calls to SQS and DynamoDB"
_SOCKETS: Final = "posts: sockets, TLS, kernel"
_SIGNATURES: Final = "posts: signatures"
_DECISIONS: Final = "posts: selecting, classifying, settling"
_BROADCASTS: Final = "broadcasts: decoding, fan-out, checkpoints"
_MESSAGES: Final = "messages: leases, acknowledgements"
_OTHER: Final = "other"
_MESSAGE_FILES: Final = (
    "worker/pipeline/consumer.py",
    "worker/pipeline/admission.py",
    "worker/pipeline/capacity.py",
    "worker/pipeline/lease.py",
    "worker/batcher.py",
)
_BROADCAST_FILES: Final = (
    "worker/pipeline/broadcaster.py",
    "worker/pipeline/claiming.py",
    "worker/pipeline/run.py",
    "worker/pipeline/checkpoints.py",
    "worker/pipeline/remainders.py",
    "worker/pipeline/completions.py",
    "worker/delivery/fanout.py",
    "worker/decisions/checkpoint.py",
    "worker/pipeline/room_settings.py",
    "worker/ports.py",
    "gatecast/broadcast.py",
)


class FunctionShare(msgspec.Struct):
    function: str
    file: str
    part: str
    share: float


class Profile(msgspec.Struct):
    """Shares of the worker's CPU time."""

    samples: int
    parts: dict[str, float]
    functions: list[FunctionShare]


class _Frame(NamedTuple):
    function: str
    file: str


def profile(lines: Iterable[str]) -> Profile:
    """Each line is a stack, its frames separated by semicolons, followed by its number of samples."""
    parts: Counter[str] = Counter()
    functions: Counter[tuple[_Frame, str]] = Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        frames = [_frame(each) for each in stack.split(";")]
        part, innermost = _part(frames)
        parts[part] += int(count)
        functions[innermost, part] += int(count)
    samples = parts.total()
    return Profile(
        samples=samples,
        parts={part: count / samples for part, count in parts.most_common()},
        functions=[
            FunctionShare(frame.function, frame.file, part, count / samples)
            for (frame, part), count in functions.most_common()
        ],
    )


def _frame(text: str) -> _Frame:
    found = _FRAME.fullmatch(text)
    return _Frame(found["function"], found["file"]) if found else _Frame(text, "")


def _part(frames: list[_Frame]) -> tuple[str, _Frame]:
    """The part of the work that this stack belongs to, and the project's function that it is attributed to."""
    project = [frame for frame in frames if frame.file.startswith(_PROJECT) and frame.file != _ENTRY]
    if not project:
        return _LOOP, _Frame("–", "")
    innermost = project[-1]
    files = {frame.file for frame in project}
    if any(frame.file.startswith("structlog/") for frame in frames):
        return _LOG, innermost
    if any(file.startswith("worker/aws/") for file in files):
        return _CALLS, innermost
    if "worker/delivery/engine.py" in files:
        if innermost.file == "worker/transport/signing.py":
            return _SIGNATURES, innermost
        return (_SOCKETS if innermost.file == "worker/transport/pool.py" else _DECISIONS), innermost
    if innermost.file in _MESSAGE_FILES:
        return _MESSAGES, innermost
    return (_BROADCASTS if innermost.file in _BROADCAST_FILES else _OTHER), innermost


class ObservabilityShares(msgspec.Struct):
    """Shares of the CPU time that observability takes, by component."""

    samples: int
    shares: dict[str, float]

    @property
    def share(self) -> float:
        return sum(self.shares.values())


_OBSERVABILITY_FILES: Final = {
    "exporter": ("worker/observe/admin_server.py", "prometheus_client/", "aiohttp/web"),
    "counters": ("worker/observe/metrics.py", "worker/pipeline/queue_depth.py", "worker/observe/health.py"),
    "logger": ("structlog/", "worker/observe/log.py"),
}


def observability_shares(lines: Iterable[str]) -> ObservabilityShares:
    """The lines are as for `profile`. A sample counts for the first component that is anywhere on its stack."""
    counts = dict.fromkeys(_OBSERVABILITY_FILES, 0)
    samples = 0
    for line in lines:
        stack, _, count = line.rpartition(" ")
        samples += int(count)
        files = [_frame(each).file for each in stack.split(";")]
        for name, prefixes in _OBSERVABILITY_FILES.items():
            if any(file.startswith(prefixes) for file in files):
                counts[name] += int(count)
                break
    return ObservabilityShares(samples, {name: count / samples for name, count in counts.items()})
