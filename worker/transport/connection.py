"""One keep-alive connection: its socket, its state, and the socket options that detect a dead peer."""

import os
import random
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar, cast

from worker.transport.responses import ResponseReader

STALE_AFTER_SECONDS: Final = 1.0
"""A connection may be stale after this long idle, even if it has not carried an exchange yet."""
_RETIRE_AFTER_SECONDS: Final = 600.0

# A network in between may drop a connection without notice to either end. Keep-alive probes on idle connections prevent
# that, or detect it. A request that is not acknowledged (TCP) fails after seconds; a server that is slow to respond has
# acknowledged it.
_KEEP_ALIVE: Final = {
    "TCP_KEEPIDLE": 30,
    "TCP_KEEPALIVE": 30,  # the same on macOS
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 3,
}
_UNACKNOWLEDGED_MS: Final = 3_000

E = TypeVar("E")
SocketAddress = tuple[socket.AddressFamily, Any]


class Connection(Generic[E]):
    """`exchange` is the one in progress. While the connection is opened, `step` is called when the socket is ready."""

    __slots__ = (
        "exchange", "fd", "idle_since", "open_since", "opened_at", "read", "reader", "retire_at", "sock", "started_at",
        "step", "target", "unsent", "write"
    )  # fmt: skip

    def __init__(self, sock: socket.socket, target: SocketAddress, kept_body_bytes: int, now: float) -> None:
        self.sock = sock
        self.target = target
        self.fd = sock.fileno()
        self.opened_at = now
        self.open_since = now
        self.idle_since = now
        """When it last became idle."""
        self.started_at = now
        self.retire_at = now + _RETIRE_AFTER_SECONDS * (0.75 + random.random() / 2)
        self.exchange: E | None = None
        self.unsent = b""
        self.reader = ResponseReader(kept_body_bytes)
        self.step: Callable[[], None] | None = None
        self.use(sock)

    def use(self, sock: socket.socket) -> None:
        self.sock = sock
        # The SSL socket's own read and write: recv_into and send would only check their flags again and call them.
        if isinstance(sock, ssl.SSLSocket):
            self.read: Callable[[int, bytearray], int] = cast(Any, sock.read)  # bytes only without a buffer
            self.write: Callable[[bytes], int] = sock.write
        else:
            self.read = lambda size, buffer: sock.recv_into(buffer, size)
            self.write = sock.send

    def opened(self, now: float) -> None:
        """Opening is complete: the connection can carry exchanges from now on."""
        self.step = None
        self.open_since = self.idle_since = now
        _set_tcp_option(self.sock, "TCP_USER_TIMEOUT", _UNACKNOWLEDGED_MS)

    @property
    def idle_before(self) -> float:
        """How many seconds it had been idle when its exchange started."""
        return self.started_at - self.idle_since

    @property
    def may_be_stale(self) -> bool:
        """Whether it had carried exchanges, or was idle, before the current one, so that it may have been stale."""
        return self.idle_since > self.open_since or self.idle_before >= STALE_AFTER_SECONDS


def prepare(sock: socket.socket) -> None:
    """Set the options of a socket that is about to connect."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        _set_tcp_option(sock, name, value)


def _set_tcp_option(sock: socket.socket, name: str, value: int) -> None:
    """Set an option if the platform has it: without it, dead connections are detected later."""
    option = getattr(socket, name, None)
    if option is not None:
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def socket_error(error: OSError) -> str:
    """The error in a few words, for logs and readiness: only the cause, no other data."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"tls: {error.reason or error.__class__.__name__}"
    return os.strerror(error.errno) if error.errno else error.__class__.__name__
