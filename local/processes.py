"""Child processes of the embedded stack: started with a log file, stopped for certain.

A child runs in a process group of its own, so that Ctrl-C in a terminal reaches only the parent, which then stops its
children in order. `stop` returns when the process is gone, whatever it takes.
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
_LEASH: Final = Path(__file__).with_name("leash.py")
_TAIL_CHARACTERS: Final = 2_000
_POLL_SECONDS: Final = 0.05


class ProcessFailed(RuntimeError):  # noqa: N818 - it says what happened
    """A child ended or did not become ready. The message carries the end of its log."""


class Process:
    """One running child, whose output goes to the file `log`. A context manager that stops it.

    `start` must be called on a thread that lives as long as the child shall: the kernel ties the two together.
    """

    def __init__(self, popen: "subprocess.Popen[bytes]", log: Path) -> None:
        self._popen = popen
        self._terminated = False
        self.log = log

    @classmethod
    def start(
        cls, command: Sequence[str], *, environment: Mapping[str, str], log: Path, directory: Path | None = None
    ) -> Self:
        """Starts the command. `environment` is the whole of it; the log is appended to."""
        with log.open("ab") as output:
            popen = subprocess.Popen(  # noqa: S603 - the commands are the stack's own
                [sys.executable, "-IS", str(_LEASH), str(os.getpid()), *command],
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
        """None while it runs; negative: the signal that ended it."""
        return self._popen.poll()

    def terminate(self) -> None:
        """Sends SIGTERM and returns at once. Does nothing to a process that has ended, as do the others."""
        self._terminated = True
        self._popen.terminate()

    def interrupt(self) -> None:
        self._popen.send_signal(signal.SIGINT)

    def pause(self) -> None:
        """Stops it in its tracks (SIGSTOP), as a machine does that hangs. `resume` lets it go on."""
        self._popen.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._popen.send_signal(signal.SIGCONT)

    def kill(self) -> int:
        """Ends it by SIGKILL, waits, and returns the exit code."""
        self._popen.kill()
        return self._popen.wait()

    def wait(self, timeout_seconds: float | None = None) -> int:
        """The exit code, when it has ended. Raises TimeoutError."""
        try:
            return self._popen.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"process {self.pid} still runs after {timeout_seconds} s") from None

    def stop(self, grace_seconds: float = 5.0) -> int:
        """SIGTERM, if that was not sent before, and SIGKILL after the grace. Returns the exit code.

        A second SIGTERM would be an order to hurry to many a program.
        """
        if not self._terminated:
            self.terminate()
        try:
            return self.wait(grace_seconds)
        except TimeoutError:
            return self.kill()

    def wait_until_answering(self, url: str, *, timeout_seconds: float) -> None:
        """Returns when a GET of the URL answers 2xx. Raises ProcessFailed when the child ends or takes longer."""
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            if self.exit_code is not None:
                raise self.failed("the process ended at its start")
            try:
                with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - http, on the loopback address
                    return
            except OSError:
                time.sleep(_POLL_SECONDS)
        raise self.failed(f"{url} did not answer within {timeout_seconds} s")

    def log_tail(self) -> str:
        return self.log.read_text(errors="replace")[-_TAIL_CHARACTERS:] if self.log.exists() else ""

    def failed(self, what: str) -> ProcessFailed:
        """An exception that says what went wrong and shows the end of the log."""
        return ProcessFailed(f"{what} (exit code {self.exit_code}, log {self.log}):\n{self.log_tail()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def allow_many_files() -> None:
    """Raises this process's limit of open files as far as it may: every client is one, and 1,024 are soon used up."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # some systems refuse what they call unlimited
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def free_port() -> int:
    """A TCP port that was free on the loopback address a moment ago. Another process may take it first."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
