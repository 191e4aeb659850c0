"""A connection pool with a driver, and a server whose behaviour per request the test defines."""

import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

import pytest
import trustme

from worker.transport.pool import Pool
from worker.transport.responses import MAX_BODY_BYTES, PLAIN_200, Response
from worker.transport.signing import Address

REQUEST = b"POST /x HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
GONE = b"HTTP/1.1 410 Gone\r\nContent-Length: 4\r\n\r\ngone"

Behaviour = Callable[[socket.socket], None]


class Server:
    """Accepts connections, each in a thread; reads whole requests and calls `behaviour` with the request's number."""

    def __init__(self, behaviour: Callable[[int, socket.socket], None], tls: ssl.SSLContext | None = None) -> None:
        self._behaviour = behaviour
        self._tls = tls
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self.requests = 0
        self.accepted = 0
        self.port: int = self._listening.getsockname()[1]

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            self.accepted += 1
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
            self._sockets.append(sock)
            received = b""
            while True:
                while received.count(b"hello") == 0:
                    data = sock.recv(65536)
                    if not data:
                        return
                    received += data
                received = received.partition(b"hello")[2]
                self.requests += 1
                self._behaviour(self.requests, sock)
        except OSError:
            return
        finally:
            sock.close()

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for sock in self._sockets:
            sock.close()


class Recorder:
    """An exchange handler that records how exchanges end."""

    def __init__(self) -> None:
        self.responses: dict[str, Response] = {}
        self.failures: dict[str, str] = {}
        self.retried: list[str] = []
        self.unwanted: set[str] = set()

    def on_plain_responses(self, exchanges: Sequence[str], seconds: list[float], now: float) -> None:
        assert exchanges
        for exchange, each in zip(exchanges, seconds, strict=True):
            self.on_response(exchange, PLAIN_200, each, now)

    def on_response(self, exchange: str, response: Response, seconds: float, now: float) -> None:
        assert 0 <= seconds <= now
        assert exchange not in self.responses
        assert exchange not in self.failures
        self.responses[exchange] = response

    def on_failure(self, exchange: str, reason: str, seconds: float, now: float) -> None:
        assert 0 <= seconds <= now
        assert exchange not in self.responses
        assert exchange not in self.failures
        self.failures[exchange] = reason

    def retry_request(self, exchange: str, now: float) -> bytes | None:
        assert now >= 0
        assert exchange not in self.responses
        assert exchange not in self.failures
        assert exchange not in self.retried
        self.retried.append(exchange)
        return None if exchange in self.unwanted else REQUEST


class Driver:
    """Drives a pool: polls it until exchanges have ended."""

    def __init__(
        self, port: int, *, size: int = 1, tls: ssl.SSLContext | None = None, kept_body_bytes: int = MAX_BODY_BYTES
    ) -> None:
        self.recorder = Recorder()
        address = Address.from_url(f"{'https' if tls else 'http'}://127.0.0.1:{port}")
        self.pool: Pool[str] = Pool(address, size=size, handler=self.recorder, tls=tls, kept_body_bytes=kept_body_bytes)
        self.pool.resolved([(socket.AF_INET, ("127.0.0.1", port))])
        self.wanted = 1
        self.time = 0.0

    def poll_until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not done():
            assert time.monotonic() < deadline
            self.pool.request_connections(self.wanted, self.time)
            self.pool.poll(self.time)
            self.time += 0.01
            time.sleep(0.0005)

    def exchange(self, name: str, request: bytes = REQUEST) -> None:
        """Start one exchange on an idle connection and wait for its end."""
        self.poll_until(lambda: self.pool.idle > 0)
        self.pool.send(name, request, self.time)
        self.poll_until(lambda: name in self.recorder.responses or name in self.recorder.failures)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.close()
        assert self.pool.in_flight == 0


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.fixture(params=["plain", "tls"])
def tls(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[ssl.SSLContext, ssl.SSLContext] | None]:
    """(server context, client context), or None for plain TCP."""
    if request.param == "plain":
        yield None
        return
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    yield server, ssl.create_default_context(cafile=str(bundle))


Tls = tuple[ssl.SSLContext, ssl.SSLContext] | None


def serving(behaviour: Callable[[int, socket.socket], None], tls: Tls) -> Server:
    return Server(behaviour, tls[0] if tls else None)


def driving(server: Server, tls: Tls, *, size: int = 1) -> Driver:
    return Driver(server.port, size=size, tls=tls[1] if tls else None)
