"""The peers of the measured programs, on a core of their own: the mock servers of `sink/`, and a bare nginx.

`@connections` has two kinds of peers because a client's cost depends on its peer: a fast one lets the client read many
responses per wake-up, a slower one wakes it more often.
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
    """A server for `@connections`. `url` is the part before `/@connections`."""

    url: str

    def reset(self) -> None: ...

    def posts(self) -> int:
        """Since the last reset."""

    def cpu_seconds(self) -> float: ...


class _Control:
    """A connection to a peer's control interface, kept open so that requests cost the peer next to nothing."""

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

    def request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        self._connection.request(method, path, body)
        with self._connection.getresponse() as response:
            content = response.read()
        if response.status not in (http.HTTPStatus.OK, http.HTTPStatus.NO_CONTENT):
            raise BenchmarkFailed(f"{path} returned {response.status}: {content!r}")
        return content

    def close(self) -> None:
        """Close the connection; the next request reopens it."""
        self._connection.close()

    def stats(self) -> dict[str, Any]:
        return msgspec.json.decode(self.request("GET", "/stats"), type=dict[str, Any])


class Connections:
    """The mock server for `@connections`."""

    def __init__(self, url: str, pid: int, *, expected: frozenset[str] = frozenset({"200"})) -> None:
        self.url = f"{url}/live"
        self._pid = pid
        self._expected = expected
        self._control = _Control(url)

    def at(self, url: str) -> "Connections":
        """The same server under another address."""
        moved = copy(self)
        moved.url = url
        return moved

    def reset(self) -> None:
        self._control.request("POST", "/reset", b"")

    def posts(self) -> int:
        return int(self._checked_stats()["posts"])

    def first_post_at(self) -> float:
        """Time of the first post since the last reset, in seconds on the machine's monotonic clock."""
        return float(self._checked_stats()["first_at"])

    def cpu_seconds(self) -> float:
        return cpu_seconds(self._pid)

    def _checked_stats(self) -> dict[str, Any]:
        stats = self._control.stats()
        if set(stats["statuses"]) - self._expected:
            raise BenchmarkFailed(f"unexpected responses: {stats['statuses']}")
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
        raise BenchmarkFailed("nginx did not start; see bench/build/nginx.log")

    def reset(self) -> None:
        self._before = self._requests()

    def posts(self) -> int:
        return self._requests() - self._before - 1  # without the request for this count

    def cpu_seconds(self) -> float:
        return cpu_seconds(self._pid)

    def _requests(self) -> int:
        """Parse nginx's stub_status: `accepts handled requests`, then the three numbers."""
        return int(self._control.request("GET", "/").split(b"requests")[1].split()[2])


class Workload(msgspec.Struct):
    """The queue's content: broadcast *i* goes to room `first_room` + *i* modulo `rooms`; each room has `members`.

    With `history_seconds` above 0, rooms have history.
    """

    broadcasts: int
    rooms: int
    members: int
    data_bytes: int = 256
    joined_rooms: int = 0
    first_room: int = 0
    history_seconds: int = 0

    @property
    def deliveries(self) -> int:
        return self.broadcasts * self.members


class Aws:
    """The mock server for SQS and DynamoDB."""

    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        self._pid = pid
        self._control = _Control(url)

    def start(self, workload: Workload) -> None:
        """Start a new workload, with all broadcasts on the queue at once."""
        self._control.request("POST", "/reset", msgspec.json.encode(workload))

    def stats(self) -> dict[str, Any]:
        return self._control.stats()

    def cpu_seconds(self) -> float:
        return cpu_seconds(self._pid)


class Table:
    """The mock server for clients that only remove connections; counts one query per connection."""

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
    """Run the mock `@connections`. `delays_ms` is the range of random response delays, `gone` the share of 410s."""
    lowest, highest = delays_ms
    command = (
        *(SINK / "build" / "connections", "--port", "0"),
        *("--certificate", CERTIFICATES / "server.pem", "--key", CERTIFICATES / "server-key.pem"),
        *("--delay-min-ms", str(lowest), "--delay-max-ms", str(highest)),
        *(("--status", f"410:{gone}") if gone else ()),
    )
    with _mock_server(command) as (url, pid):
        yield Connections(url, pid, expected=frozenset({"200", "410"} if gone else {"200"}))


@contextmanager
def behind_nat(peer: Connections, nat_timeout: float, *, silent: bool) -> Iterator[Connections]:
    """The same peer behind a NAT gateway that drops connections which have been idle for `nat_timeout` seconds."""
    parts = urlsplit(peer.url)
    command = (sys.executable, "-m", "bench.nat", str(parts.port), str(nat_timeout), "silent" if silent else "reset")
    with _mock_server(command) as (port, _):
        yield peer.at(parts._replace(netloc=f"{parts.hostname}:{port}").geturl())


@contextmanager
def aws(*, sqs_ms: float = 0, dynamodb_ms: float = 0) -> Iterator[Aws]:
    """Run the mock SQS and DynamoDB, with an empty queue. The arguments are the latency of each service's calls."""
    command = (
        *(SINK / "build" / "aws", "--port", "0", "--broadcasts", "0"),
        *("--sqs-delay-ms", str(sqs_ms), "--dynamodb-delay-ms", str(dynamodb_ms)),
    )
    with _mock_server(command) as (url, pid):
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
def _mock_server(command: tuple[Any, ...]) -> Iterator[tuple[str, int]]:
    """Run a mock server; yields the address that it prints, and its process id."""
    with running(command, core=PEER_CORE, output=subprocess.PIPE) as process:
        yield line_from(process).partition(": ")[2], process.pid
