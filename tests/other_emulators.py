"""Emulators that tests can run on instead of ministack: AWS's own DynamoDB Local, and the SQS of LocalStack.

Each is a child process that listens on 127.0.0.1 and a free port, and keeps its state in memory and its files in a
temporary directory. pytest's options `--dynamodb` and `--sqs` choose them; make installs them, with the targets
test-dynamodb-local and test-localstack-sqs. Neither verifies signatures.
"""

import os
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from local.aws_environment import without_aws
from local.processes import LOOPBACK, Process, free_port
from tests.compose import services

CHECKOUT: Final = Path(__file__).parents[1]
DYNAMODB_LOCAL: Final = CHECKOUT / ".local" / "tools" / "dynamodb-local"
LOCALSTACK_PYTHON: Final = CHECKOUT / ".venv-localstack" / "bin" / "python"
_START_SECONDS: Final = 60.0

LOCALSTACK_DIFFERENCES: Final = {
    "test_the_receipt_handle_of_an_earlier_receive_is_stale[aws]": "changes visibility by any receipt handle",
    "test_a_deletion_with_a_stale_receipt_handle_deletes_nothing[aws]": "deletes by any receipt handle",
}
"""Tests that must fail on LocalStack, by name, with the reason. AWS promises neither behaviour."""


@contextmanager
def dynamodb_local() -> Iterator[str]:
    """The URL of a running DynamoDB Local. Raises FileNotFoundError or ProcessFailed."""
    _check_installed(DYNAMODB_LOCAL / "DynamoDBLocal.jar", "make test-dynamodb-local")
    port = free_port()
    command = [
        "java",
        "-Djava.library.path=DynamoDBLocal_lib",
        "-Dorg.eclipse.jetty.xml.XmlParser.Validating=false",  # the schema is on the internet
        "-cp",
        "DynamoDBLocal.jar:DynamoDBLocal_lib/*",
        "org.eclipse.jetty.xml.XmlConfiguration",
        f"port={port}",
        str(Path(__file__).with_name("dynamodb_local.xml")),
    ]
    with _running(command, {"DDB_LOCAL_TELEMETRY": "0"}, directory=DYNAMODB_LOCAL) as process:
        _wait_until_listening(process, port)
        yield f"http://{LOOPBACK}:{port}"


@contextmanager
def localstack_sqs() -> Iterator[str]:
    """The URL of a running LocalStack, which serves SQS only, with the settings of docker-compose.yml.

    Raises FileNotFoundError or ProcessFailed.
    """
    _check_installed(LOCALSTACK_PYTHON, "make test-localstack-sqs")
    address = f"{LOOPBACK}:{free_port()}"
    environment = {
        **{name: value for name, value in services()["aws"].environment.items() if value},
        "SERVICES": "sqs",
        "LOCALSTACK_HOST": address,
        "GATEWAY_LISTEN": address,
        "GATEWAY_SERVER": "hypercorn",  # the default one, twisted, ignores the address and listens on all of them
        "OVERRIDE_IN_DOCKER": "0",
    }
    command = [str(LOCALSTACK_PYTHON), "-m", "localstack.runtime.main"]
    with _running(command, environment) as process:
        process.wait_until_responding(f"http://{address}/_localstack/health", timeout_seconds=_START_SECONDS)
        yield f"http://{address}"


@contextmanager
def _running(command: Sequence[str], environment: dict[str, str], directory: Path | None = None) -> Iterator[Process]:
    """The command as a child process whose files, except for those of `directory`, are temporary."""
    with tempfile.TemporaryDirectory(prefix="gatecast-emulator-") as home:
        places = dict.fromkeys(("HOME", "TMPDIR", "FILESYSTEM_ROOT"), home)
        process = Process.start(
            command,
            environment={**without_aws(os.environ), **places, **environment},
            log=Path(home) / "emulator.log",
            directory=directory or Path(home),
        )
        with process:
            yield process


def _check_installed(path: Path, command: str) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: `{command}` installs it")


def _wait_until_listening(process: Process, port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.exit_code is not None:
            raise process.failed("the process ended during startup")
        with suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=5):
            return
        time.sleep(0.05)
    raise process.failed(f"it does not listen on port {port} after {_START_SECONDS} s")
