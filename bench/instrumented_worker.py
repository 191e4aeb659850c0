"""The worker, unchanged, with an instrument in its process.

    python -m bench.instrumented_worker iterations|stacks|posts|posts-unreaped FILE

SIGUSR1 starts a recording, SIGUSR2 ends it and writes FILE.

`iterations`: the CPU time of every iteration of the event loop, in nanoseconds, one per line. A callback that
reschedules itself runs once per iteration and reads the CPU clock of the loop's thread; the time between two readings
is all that the loop did: timers, responses, tasks, and garbage collection. Because of the callback the loop never
sleeps, and iterations without work would outnumber the others. So iterations of less than `MIN_ITERATION_NS` are
excluded, which makes every percentile longer, not shorter.

`stacks`: the running stack, each time the process has used another few milliseconds of CPU (ITIMER_PROF). The
interpreter handles signals when a C call returns, so the time of such a call is attributed to the function that made
it. A profiler that stops the process from outside was tried and is far off: it finds the process in its system calls.

`posts`: the time from every post to its response, in milliseconds, one per line, as recorded by the worker's metrics.
`posts-unreaped`: the same in a worker that does not remove gone connections.
"""

import asyncio
import signal
import sys
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from time import thread_time_ns
from types import FrameType
from typing import Any, Final, Protocol

import uvloop

from bench.machine import CHECKOUT
from worker.__main__ import main
from worker.observe.metrics import Metrics
from worker.pipeline.reaper import Reaper

MIN_ITERATION_NS: Final = 20_000
_SAMPLE_SECONDS: Final = 0.001
"""The kernel rounds it up to its tick."""


class _Instrument(Protocol):
    def start(self) -> None: ...

    def stop(self) -> list[str]:
        """End the recording and return its lines."""


class _LoopIterations:
    def __init__(self) -> None:
        self._nanoseconds: list[int] = []
        self._last = 0

    def start(self) -> None:
        self._iteration()
        self._nanoseconds.clear()

    def stop(self) -> list[str]:
        return [str(each) for each in self._nanoseconds]

    def _iteration(self) -> None:
        took = thread_time_ns() - self._last
        if took >= MIN_ITERATION_NS:
            self._nanoseconds.append(took)
        asyncio.get_running_loop().call_soon(self._iteration)
        self._last = thread_time_ns()


class _Stacks:
    def __init__(self) -> None:
        self._stacks: Counter[str] = Counter()

    def start(self) -> None:
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, _SAMPLE_SECONDS, _SAMPLE_SECONDS)

    def stop(self) -> list[str]:
        signal.setitimer(signal.ITIMER_PROF, 0)
        return [f"{stack} {count}" for stack, count in self._stacks.items()]

    def _sample(self, _: int, frame: FrameType | None) -> None:
        frames = []
        while frame is not None:
            frames.append(f"{frame.f_code.co_qualname} ({_short(frame.f_code.co_filename)})")
            frame = frame.f_back
        self._stacks[";".join(reversed(frames))] += 1


class _Posts:
    def __init__(self) -> None:
        self._seconds: list[float] | None = None
        one_by_one, many = Metrics.posted, Metrics.delivered

        def posted(metrics: Metrics, status: int, seconds: float) -> None:
            if self._seconds is not None:
                self._seconds.append(seconds)
            one_by_one(metrics, status, seconds)

        def delivered(metrics: Metrics, seconds: list[float]) -> None:
            if self._seconds is not None:
                self._seconds += seconds
            many(metrics, seconds)

        Metrics.posted = posted  # type: ignore[assignment, method-assign]
        Metrics.delivered = delivered  # type: ignore[assignment, method-assign]

    def start(self) -> None:
        self._seconds = []

    def stop(self) -> list[str]:
        return [f"{seconds * 1000:.2f}" for seconds in self._seconds or ()]


class _PostsUnreaped(_Posts):
    def __init__(self) -> None:
        super().__init__()
        Reaper.offer = lambda *_: None  # type: ignore[method-assign]


_INSTRUMENTS: Final[dict[str, type[_Instrument]]] = {
    "iterations": _LoopIterations,
    "stacks": _Stacks,
    "posts": _Posts,
    "posts-unreaped": _PostsUnreaped,
}


def _short(file: str) -> str:
    """`worker/worker.py` for a module of the checkout, `structlog/_base.py` for an installed one."""
    if "site-packages/" in file:
        return file.rpartition("site-packages/")[2]
    return file.removeprefix(f"{CHECKOUT}/")


def _run_instrumented(worker: Coroutine[Any, Any, Any]) -> Any:
    instrument = _INSTRUMENTS[sys.argv[1]]()
    file = Path(sys.argv[2])

    def write() -> None:
        unfinished = file.with_suffix(".unfinished")
        unfinished.write_text("\n".join(instrument.stop()))
        unfinished.rename(file)

    async def run() -> Any:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, instrument.start)
        loop.add_signal_handler(signal.SIGUSR2, write)
        return await worker

    return _run(run())


_run = uvloop.run

if __name__ == "__main__":
    uvloop.run = _run_instrumented  # type: ignore[assignment]
    sys.exit(main())
