"""The other side: the compiled stand-ins of `sink/`, and nginx with nothing behind it, each on the peers' core.

`@connections` has two stand-ins because what a client pays depends on its peer: one that answers at once lets a client
read many answers at one wake-up, a slower one wakes it more often.
"""

import http.client
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import msgspec

from bench.machine import BUILD, CHECKOUT, PEER_CORE, cpu_seconds, free_port
from bench.processes import BenchmarkFailed, line_from, running

SINK: Final = CHECKOUT / "bench" / "sink"
CERTIFICATES: Final = SINK / "build" / "certificates"
CA: Final = CERTIFICATES / "ca.pem"

_NGINX: Final = """\
daemon off;
master_process off;
worker_processes 1;
pid {build}/nginx.pid;
error_log {build}/nginx.log error;
events {{
    worker_connections 4096;
}}
http {{
    access_log off;
    client_body_temp_path {build}/nginx-bodies;
    proxy_temp_path {build}/nginx-proxy;
    fastcgi_temp_path {build}/nginx-fastcgi;
    uwsgi_temp_path {build}/nginx-uwsgi;
    scgi_temp_path {build}/nginx-scgi;
    client_header_buffer_size 8k;
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {certificates}/server.pem;
        ssl_certificate_key {certificates}/server-key.pem;
        ssl_protocols TLSv1.3;
        ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
        location / {{
            default_type application/json;
            return 200;
        }}
    }}
    server {{
        listen 127.0.0.1:{status_port};
        location / {{
            stub_status;
        }}
    }}
}}
"""


class Peer(Protocol):
    """Stands in for `@connections`. `url` ends before `/@connections`."""

    url: str

    def reset(self) -> None: ...

    def posts(self) -> int:
        """Since the last reset."""

    def cpu_seconds(self) -> float: ...


class _Control:
    """A connection to ask a peer on, kept open so that asking costs the peer next to nothing."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname
        if parts.scheme == "https":
            context = ssl.create_default_context(cafile=CA)
            self._connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=30, context=context
            )
        else:
            self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)

    def ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        self._connection.request(method, path, body)
        with self._connection.getresponse() as response:
            content = response.read()
        if response.status not in (http.HTTPStatus.OK, http.HTTPStatus.NO_CONTENT):
            raise BenchmarkFailed(f"{path} was answered with {response.status}: {content!r}")
        return content

    def close(self) -> None:
        """The next question opens it again."""
        self._connection.close()

    def stats(self) -> dict[str, Any]:
        return msgspec.json.decode(self.ask("GET", "/stats"), type=dict[str, Any])


class Connections:
    """The compiled stand-in for `@connections`."""

    def __init__(self, url: str, pid: int, *, expected: frozenset[str] = frozenset({"200"})) -> None:
        self.url = f"{url}/live"
        self._pid = pid
        self._expected = expected
        self._control = _Control(url)

    def at(self, url: str) -> "Connections":
        """The same one under another address."""
        moved = copy(self)
        moved.url = url
        return moved

    def reset(self) -> None:
        self._control.ask("POST", "/reset", b"")

    def posts(self) -> int:
        return int(self._checked_stats()["posts"])

    def first_post_at(self) -> float:
        """Since the last reset, in seconds on the machine's monotonic clock."""
        return float(self._checked_stats()["first_at"])

    def cpu_seconds(self) -> float:
        return cpu_seconds(self._pid)

    def _checked_stats(self) -> dict[str, Any]:
        stats = self._control.stats()
        if set(stats["statuses"]) - self._expected:
            raise BenchmarkFailed(f"posts were answered with {stats['statuses']}")
        return stats


class Nginx:
    def __init__(self, port: int, status_port: int, pid: int) -> None:
        self.url = f"https://127.0.0.1:{port}/live"
        self._pid = pid
        self._control = _Control(f"http://127.0.0.1:{status_port}")
        self._before = 0

    def wait_until_up(self) -> None:
        for _ in range(50):
            try:
                self.reset()
            except OSError:
                self._control.close()
                time.sleep(0.1)
            else:
                return
        raise BenchmarkFailed("nginx does not start; bench/build/nginx.log says why")

    def reset(self) -> None:
        self._before = self._requests()

    def posts(self) -> int:
        return self._requests() - self._before - 1  # asking is a request, too

    def cpu_seconds(self) -> float:
        return cpu_seconds(self._pid)

    def _requests(self) -> int:
        """nginx counts requests when they begin: after `accepts handled requests` come the three numbers."""
        return int(self._control.ask("GET", "/").split(b"requests")[1].split()[2])


class Workload(msgspec.Struct):
    """What waits on the queue: broadcast *i* goes to room *i* modulo `rooms`, counted from `first_room`.

    Each room has `members`.
    """

    broadcasts: int
    rooms: int
    members: int
    data_bytes: int = 256
    joined_rooms: int = 0
    first_room: int = 0

    @property
    def deliveries(self) -> int:
        return self.broadcasts * self.members


class Aws:
    """The compiled stand-in for SQS and DynamoDB."""

    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        self._pid = pid
        self._control = _Control(url)

    def start(self, workload: Workload) -> None:
        """Put all broadcasts on the queue at once."""
        self._control.ask("POST", "/reset", msgspec.json.encode(workload))

    def stats(self) -> dict[str, Any]:
        return self._control.stats()

    def cpu_seconds(self) -> float:
        return cpu_seconds(self._pid)


class Table:
    """The same, for clients that only remove connections: a query is made for each."""

    def __init__(self, aws: Aws, *, joined_rooms: int) -> None:
        self.url = aws.url
        self._aws = aws
        self._workload = Workload(0, 1, 0, joined_rooms=joined_rooms)
        self.reset()

    def reset(self) -> None:
        self._aws.start(self._workload)

    def posts(self) -> int:
        return int(self._aws.stats()["connections_queried"])

    def cpu_seconds(self) -> float:
        return self._aws.cpu_seconds()


@contextmanager
def connections(delays_ms: tuple[int, int] = (0, 0), *, gone: float = 0.0) -> Iterator[Connections]:
    """Answers are kept back for a time drawn from `delays_ms`; `gone` is the share of posts that return 410."""
    lowest, highest = delays_ms
    command = (
        *(SINK / "build" / "connections", "--port", "0"),
        *("--certificate", CERTIFICATES / "server.pem", "--key", CERTIFICATES / "server-key.pem"),
        *("--delay-min-ms", str(lowest), "--delay-max-ms", str(highest)),
        *(("--status", f"410:{gone}") if gone else ()),
    )
    with _stand_in(command) as (url, pid):
        yield Connections(url, pid, expected=frozenset({"200", "410"} if gone else {"200"}))


@contextmanager
def behind_nat(peer: Connections, forgets_after: float, *, silent: bool) -> Iterator[Connections]:
    """The same peer, reached through a NAT gateway that forgets connections which are idle for so many seconds."""
    parts = urlsplit(peer.url)
    command = (sys.executable, "-m", "bench.nat", str(parts.port), str(forgets_after), "silent" if silent else "reset")
    with _stand_in(command) as (port, _):
        yield peer.at(parts._replace(netloc=f"{parts.hostname}:{port}").geturl())


@contextmanager
def aws(*, sqs_ms: float = 0, dynamodb_ms: float = 0) -> Iterator[Aws]:
    """Its queue is empty at first. Every call of a service takes as long as it says here."""
    command = (
        *(SINK / "build" / "aws", "--port", "0", "--broadcasts", "0"),
        *("--sqs-delay-ms", str(sqs_ms), "--dynamodb-delay-ms", str(dynamodb_ms)),
    )
    with _stand_in(command) as (url, pid):
        yield Aws(url, pid)


@contextmanager
def nginx() -> Iterator[Nginx]:
    port, status_port = free_port(), free_port()
    BUILD.mkdir(exist_ok=True)
    config = BUILD / "nginx.conf"
    config.write_text(_NGINX.format(build=BUILD, certificates=CERTIFICATES, port=port, status_port=status_port))
    with running(("nginx", "-e", BUILD / "nginx.log", "-c", config), core=PEER_CORE) as process:
        peer = Nginx(port, status_port, process.pid)
        peer.wait_until_up()
        yield peer


@contextmanager
def _stand_in(command: tuple[Any, ...]) -> Iterator[tuple[str, int]]:
    """Its address, as it prints it, and its process."""
    with running(command, core=PEER_CORE, output=subprocess.PIPE) as process:
        yield line_from(process).partition(": ")[2], process.pid
