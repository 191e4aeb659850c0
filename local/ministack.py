"""SQS, DynamoDB and S3 in a child process: ministack, from a virtual environment of its own (it pins its botocore).

It listens on 127.0.0.1 only, keeps its state in memory and its files in a temporary directory that goes with it, and
leaves Docker and the user's own AWS configuration alone.
"""

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Final, Self

from local.processes import LOOPBACK, Process, ProcessFailed, free_port
from local.sdk import REGION, sdk_environment, without_aws

EXECUTABLE_VARIABLE: Final = "GATECAST_MINISTACK"

_DEFAULT_EXECUTABLE: Final = Path(__file__).parents[1] / ".venv-ministack" / "bin" / "ministack"
_START_ATTEMPTS: Final = 3
_START_SECONDS: Final = 30.0


def executable() -> Path:
    """Where ministack is: GATECAST_MINISTACK, or the checkout's own. Raises FileNotFoundError that says what to do."""
    path = Path(os.environ.get(EXECUTABLE_VARIABLE) or _DEFAULT_EXECUTABLE)
    if not path.is_file():
        raise FileNotFoundError(f"no ministack at {path}: run `make setup`, or set {EXECUTABLE_VARIABLE}")
    return path


class Ministack:
    """A running ministack. A context manager that stops it and removes its files."""

    def __init__(self, process: Process, url: str, directory: "tempfile.TemporaryDirectory[str]") -> None:
        self._process = process
        self._directory = directory
        self.url = url

    @classmethod
    def start(cls, *, log: Path | None = None) -> Self:
        """Returns when it answers. Raises ProcessFailed with its log, or FileNotFoundError where it is not there."""
        program = executable()
        for _ in range(_START_ATTEMPTS - 1):
            with contextlib.suppress(ProcessFailed):  # the free port may have been taken before it was used
                return cls._launch(program, log)
        return cls._launch(program, log)

    @classmethod
    def _launch(cls, program: Path, log: Path | None) -> Self:
        directory = tempfile.TemporaryDirectory(prefix="gatecast-ministack-")
        home = Path(directory.name)
        port = free_port()
        environment = {
            **without_aws(os.environ),
            "BIND_HOST": LOOPBACK,
            "GATEWAY_PORT": str(port),
            "MINISTACK_HOST": LOOPBACK,
            "MINISTACK_REGION": REGION,
            "TMPDIR": directory.name,
            "STATE_DIR": str(home / "state"),
            "S3_DATA_DIR": str(home / "s3"),
            "IOT_MTLS_ENABLED": "0",  # it would listen on a fixed port
            "SFTP_ENABLED": "0",
            "DOCKER_HOST": f"unix://{home / 'no-docker'}",  # it reaps containers at start
            "LOG_LEVEL": "WARNING",
        }
        process = Process.start([str(program)], environment=environment, log=log or home / "ministack.log")
        url = f"http://{LOOPBACK}:{port}"
        try:
            process.wait_until_answering(f"{url}/_ministack/health", timeout_seconds=_START_SECONDS)
        except BaseException:
            process.stop()
            directory.cleanup()
            raise
        return cls(process, url, directory)

    @property
    def process(self) -> Process:
        return self._process

    def environment(self) -> dict[str, str]:
        """The SDK's variables for a process that shall use it."""
        return sdk_environment(self.url)

    def stop(self) -> None:
        self._process.stop()
        self._directory.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
