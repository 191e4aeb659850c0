"""The local stack that is running in this checkout, so that other commands find it without being told.

While it runs, the process of the stack holds a lock on `.local/stack.json`, which only its owner may read: it contains
this run's credentials. The lock ends with the process, however it ends. If two stacks run, the first is found.
"""

import fcntl
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

import msgspec

from local.backend import Backend

FILE: Final = Path(__file__).parents[1] / ".local" / "stack.json"


class RunningStack(msgspec.Struct, frozen=True):
    """The variables with which programs use the stack, and the addresses that serve its workers' metrics."""

    environment: Mapping[str, str]
    workers: tuple[str, ...]

    @classmethod
    def from_backend(cls, backend: Backend, endpoint: str, workers: Iterable[str], http_api: str = "") -> Self:
        """`endpoint` is the gateway's, and `workers` are the addresses of the workers' HTTP servers.

        `http_api` is the address of the HTTP API, if there is one.
        """
        environment = {
            **backend.ministack.environment(),
            "GATECAST_TABLE": backend.table,
            "GATECAST_QUEUE_URL": backend.queues.url,
            "GATECAST_DEAD_LETTER_QUEUE_URL": backend.queues.dead_letter_url,
            "GATECAST_RECEIPTS_QUEUE_URL": backend.queues.receipts_url,
            **({"GATECAST_HTTP_API": http_api} if http_api else {}),
            "GATECAST_CONNECTIONS_ENDPOINT": endpoint,
            **({"GATECAST_PAYLOAD_BUCKET": backend.payload_bucket} if backend.payload_bucket else {}),
        }
        return cls(environment, tuple(workers))

    def exports(self) -> str:
        """Lines for a shell that set the variables."""
        return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in self.environment.items())


@contextmanager
def announced(stack: RunningStack, path: Path = FILE) -> Iterator[None]:
    """Lets `find` find the stack during the block, unless another one is found already."""
    path.parent.mkdir(exist_ok=True)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
        if not _lock(file.fileno()):
            yield
            return
        file.truncate()
        file.write(msgspec.json.encode(stack))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def find(path: Path = FILE) -> RunningStack | None:
    """The stack that is running, or None."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        if not _lock(file.fileno(), shared=True):
            return msgspec.json.decode(file.read(), type=RunningStack)
    return None


def _lock(descriptor: int, *, shared: bool = False) -> bool:
    """Whether the lock was taken; False if another process has it."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
