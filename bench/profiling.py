"""A profile of a worker from samples of its stack: what its CPU time goes to, by part of the work and by function."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec

_FRAME: Final = re.compile(r"(?P<function>.+) \((?P<file>[^()]+)\)")
_PROJECT: Final = ("worker/", "gatecast/")
_ENTRY: Final = "worker/__main__.py"

_LOOP: Final = "the loop itself: uvloop, tasks, timers"
_LOG: Final = "log lines"
_CALLS: Final = "calls to SQS and DynamoDB"
_SOCKETS: Final = "posts: sockets, TLS, kernel"
_SIGNATURES: Final = "posts: signatures"
_DECISIONS: Final = "posts: taking up, judging, settling"
_BROADCASTS: Final = "broadcasts: decoding, fan-out, checkpoints"
_MESSAGES: Final = "messages: leases, acknowledgements"
_OTHER: Final = "everything else"
_MESSAGE_FILES: Final = (
    "worker/pipeline/consumer.py",
    "worker/pipeline/admission.py",
    "worker/pipeline/capacity.py",
    "worker/pipeline/lease.py",
    "worker/batcher.py",
)
_BROADCAST_FILES: Final = (
    "worker/pipeline/broadcaster.py",
    "worker/pipeline/run.py",
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
    """Shares of the CPU time."""

    samples: int
    parts: dict[str, float]
    functions: list[FunctionShare]


class _Frame(NamedTuple):
    function: str
    file: str


def profile(lines: Iterable[str]) -> Profile:
    """A line is a stack, its frames divided by semicolons, and how many samples had it."""
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
    """Which part of the work this stack belongs to, and the project's function that it is counted for."""
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


class Watched(msgspec.Struct):
    """Shares of the CPU time that go to being watched, by what for."""

    samples: int
    shares: dict[str, float]

    @property
    def share(self) -> float:
        return sum(self.shares.values())


_WATCHING: Final = {
    "exporter": ("worker/observe/admin_server.py", "prometheus_client/", "aiohttp/web"),
    "counters": ("worker/observe/metrics.py", "worker/pipeline/queue_depth.py", "worker/observe/health.py"),
    "logger": ("structlog/", "worker/observe/log.py"),
}


def watched(lines: Iterable[str]) -> Watched:
    """Lines are as for `profile`. A sample belongs to the first of the three that is anywhere on its stack."""
    counts = dict.fromkeys(_WATCHING, 0)
    samples = 0
    for line in lines:
        stack, _, count = line.rpartition(" ")
        samples += int(count)
        files = [_frame(each).file for each in stack.split(";")]
        for name, prefixes in _WATCHING.items():
            if any(file.startswith(prefixes) for file in files):
                counts[name] += int(count)
                break
    return Watched(samples, {name: count / samples for name, count in counts.items()})
