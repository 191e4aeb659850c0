"""Child processes of the embedded stack: started with a log file, and reliably stopped.

A child runs in its own process group, so that Ctrl-C in a terminal reaches only the parent, which then stops its
children in order. `stop` returns only when the process has ended, by SIGKILL if necessary.
"""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Self

LOOPBACK: Final = "127.0.0.1"
_WRAPPER: Final = Path(__file__).with_name("die_with_parent.py")
_TAIL_CHARACTERS: Final = 2_000
_POLL_SECONDS: Final = 0.05


class ProcessFailed(RuntimeError):
    """A child ended or did not become ready. The message contains the end of its log."""


class Process:
    """One running child, whose output is written to the file `log`. A context manager that stops it.

    `start` must be called on a thread that lives as long as the child should: the kernel kills the child when the
    thread ends.
    """

    def __init__(self, popen: "subprocess.Popen[bytes]", log: Path) -> None:
        self._popen = popen
        self._terminated = False
        self.log = log

    @classmethod
    def start(
        cls, command: Sequence[str], *, environment: Mapping[str, str], log: Path, directory: Path | None = None
    ) -> Self:
        """Starts the command. `environment` is its complete environment; output is appended to the log."""
        with log.open("ab") as output:
            popen = subprocess.Popen(  # noqa: S603 - the commands are the stack's own
                [sys.executable, "-IS", str(_WRAPPER), str(os.getpid()), *command],
                env=dict(environment),
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        return cls(popen, log)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative if a signal ended it."""
        return self._popen.poll()

    def terminate(self) -> None:
        """Sends SIGTERM and returns immediately. No signal has an effect on a process that has ended."""
        self._terminated = True
        self._popen.terminate()

    def interrupt(self) -> None:
        self._popen.send_signal(signal.SIGINT)

    def pause(self) -> None:
        """Suspends it (SIGSTOP), like a hanging machine. `resume` continues it."""
        self._popen.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._popen.send_signal(signal.SIGCONT)

    def kill(self) -> int:
        """Sends SIGKILL, waits, and returns the exit code."""
        self._popen.kill()
        return self._popen.wait()

    def wait(self, timeout_seconds: float | None = None) -> int:
        """Waits until it has ended and returns the exit code. Raises TimeoutError."""
        try:
            return self._popen.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"process {self.pid} still runs after {timeout_seconds} s") from None

    def stop(self, grace_seconds: float = 5.0) -> int:
        """Sends SIGTERM, unless already sent, and SIGKILL after the grace period. Returns the exit code.

        Many programs take a second SIGTERM as an order to stop immediately.
        """
        if not self._terminated:
            self.terminate()
        try:
            return self.wait(grace_seconds)
        except TimeoutError:
            return self.kill()

    def wait_until_responding(self, url: str, *, timeout_seconds: float) -> None:
        """Returns when a GET of the URL responds with 2xx. Raises ProcessFailed if the child ends or at the timeout."""
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            if self.exit_code is not None:
                raise self.failed("the process ended during startup")
            try:
                with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - http, on the loopback address
                    return
            except OSError:
                time.sleep(_POLL_SECONDS)
        raise self.failed(f"{url} did not respond within {timeout_seconds} s")

    def log_tail(self) -> str:
        return self.log.read_text(errors="replace")[-_TAIL_CHARACTERS:] if self.log.exists() else ""

    def failed(self, what: str) -> ProcessFailed:
        """An exception with this message and the end of the log."""
        return ProcessFailed(f"{what} (exit code {self.exit_code}, log {self.log}):\n{self.log_tail()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def allow_many_files() -> None:
    """Raises this process's limit of open files to the hard limit: each client needs one, and 1,024 are not enough."""
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # some systems reject an unlimited soft limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))


def free_port() -> int:
    """A TCP port that was free on the loopback address. Another process may take it before it is used."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
