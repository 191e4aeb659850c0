"""SQS, DynamoDB and S3 in a child process: ministack, from its own virtual environment (it pins its botocore).

It listens only on 127.0.0.1, keeps its state in memory and its files in a temporary directory that is removed with it,
and does not touch Docker or the user's own AWS configuration. A middleware in its process (`local.guarded_ministack`)
admits only programs that sign with our secret, and only to the enabled services.
"""

import contextlib
import os
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Final, Self

from local.aws_environment import CREDENTIALS, REGION, sdk_environment, without_aws
from local.guarded_ministack import HEALTH_PATH, SECRET_VARIABLE
from local.processes import LOOPBACK, Process, ProcessFailed, free_port

EXECUTABLE_VARIABLE: Final = "GATECAST_MINISTACK"

_ROOT: Final = Path(__file__).parents[1]
_DEFAULT_EXECUTABLE: Final = _ROOT / ".venv-ministack" / "bin" / "ministack"
SERVICES: Final = ("sqs", "dynamodb", "s3")
_START_ATTEMPTS: Final = 3
_START_SECONDS: Final = 30.0


def interpreter() -> Path:
    """The Python of ministack's virtual environment. Raises FileNotFoundError that says how to install it.

    GATECAST_MINISTACK names the `ministack` executable beside it; the default is the checkout's own.
    """
    path = Path(os.environ.get(EXECUTABLE_VARIABLE) or _DEFAULT_EXECUTABLE)
    python = path.with_name("python")
    if not path.is_file() or not python.is_file():
        raise FileNotFoundError(
            f"no ministack with its python at {path}: run `make setup`, or set {EXECUTABLE_VARIABLE}"
        )
    return python


class Ministack:
    """A running ministack. A context manager that stops it and removes its files."""

    def __init__(self, process: Process, url: str, directory: "tempfile.TemporaryDirectory[str]") -> None:
        self._process = process
        self._directory = directory
        self.url = url

    @classmethod
    def start(cls, *, services: Collection[str] = SERVICES, log: Path | None = None) -> Self:
        """Returns when it responds. Raises ProcessFailed with its log, or FileNotFoundError if it is not installed.

        Only `services` are enabled, by their names in a signature's scope. "execute-api" opens deployed WebSocket APIs
        to clients, which need not sign.
        """
        program = interpreter()
        for _ in range(_START_ATTEMPTS - 1):
            with contextlib.suppress(ProcessFailed):  # the free port may have been taken before it was used
                return cls._launch(program, services, log)
        return cls._launch(program, services, log)

    @classmethod
    def _launch(cls, program: Path, services: Collection[str], log: Path | None) -> Self:
        directory = tempfile.TemporaryDirectory(prefix="gatecast-ministack-")
        home = Path(directory.name)
        port = free_port()
        environment = {
            **without_aws(os.environ),
            SECRET_VARIABLE: CREDENTIALS.secret_access_key,
            "AWS_ACCESS_KEY_ID": CREDENTIALS.access_key_id,
            "SERVICES": ",".join(services),
            "LAMBDA_EXECUTOR": "local" if "lambda" in services else "docker",  # without Docker no function runs
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
        process = Process.start(
            [str(program), "-m", "local.guarded_ministack"],
            environment=environment,
            log=log or home / "ministack.log",
            directory=_ROOT,
        )
        url = f"http://{LOOPBACK}:{port}"
        try:
            process.wait_until_responding(f"{url}{HEALTH_PATH}", timeout_seconds=_START_SECONDS)
        except BaseException:
            process.stop()
            directory.cleanup()
            raise
        return cls(process, url, directory)

    @property
    def process(self) -> Process:
        return self._process

    def environment(self) -> dict[str, str]:
        """The SDK's variables for a process that uses it."""
        return sdk_environment(self.url)

    def stop(self) -> None:
        self._process.stop()
        self._directory.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
