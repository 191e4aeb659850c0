"""The common part of the client programs: their arguments, and how they measure themselves.

    python -m bench.clients.NAME URL POSTS BYTES CONCURRENCY WARM_UP [RATE]

A client first makes WARM_UP posts, which open its connections, then prints `ready` and waits for a line. Then it makes
POSTS posts, each to a different connection id, and prints one line of JSON. Certificates, Region and credentials come
from the SDK's variables.
"""

import json
import os
import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Arguments:
    url: str
    posts: int
    body_bytes: int
    concurrency: int
    warm_up: int
    rate: float = 1_000_000.0

    @classmethod
    def parse(cls) -> "Arguments":
        url, *numbers = sys.argv[1:]
        posts, body_bytes, concurrency, warm_up = map(int, numbers[:4])
        return cls(url, posts, body_bytes, concurrency, warm_up, *map(float, numbers[4:]))

    @property
    def body(self) -> bytes:
        return b"x" * self.body_bytes


def connection_ids(posts: int) -> list[str]:
    """Ids as long as API Gateway's, with the final `=` that must be percent-encoded.

    Create them before the measured section, because a worker reads them from a table.
    """
    return [f"{number:015d}=" for number in range(posts)]


def tls() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=os.environ["AWS_CA_BUNDLE"])


def wait_for_start() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


@contextmanager
def measured(posts: int) -> Iterator[None]:
    """Measure time and CPU of this block, and print them at its end. All threads of the process count."""
    wait_for_start()
    cpu, began = time.process_time(), time.monotonic()
    yield
    seconds = time.monotonic() - began
    print(json.dumps({"posts": posts, "seconds": seconds, "cpu_seconds": time.process_time() - cpu}), flush=True)
