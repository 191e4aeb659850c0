"""Keep-alive connections to one HTTP/1.1 server, polled on a tick: no task, timer, future or callback object a request.

Each connection carries one exchange at a time: the request goes out, its answer comes in, and the connection is ready
for the next one. The pool owns non-blocking sockets and a poller of its own instead of asyncio transports, because one
`poll` then reads what all connections have received in one go, and requests are written after all reads.

Always:
- of an exchange that was handed over the owner hears exactly once how it ended, in a later `poll`, `sweep` or `close`;
- a connection whose answer was malformed, late or not wanted is closed and never used again;
- connections are opened a few at a time, each to the next of the addresses that the name resolves to, and replaced with
  back-off when opening fails; after some minutes a connection is retired, so that the pool follows the name.
"""

import errno
import math
import os
import random
import select
import socket
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Generic, Protocol, TypeVar, cast

from worker.http.answers import Answer, AnswerReader, MalformedAnswer
from worker.http.signing import Address
from worker.retry import backoff_seconds

OPENING_AT_ONCE: Final = 8
ANSWER_TIMEOUT_SECONDS: Final = 10.0
_OPEN_TIMEOUT_SECONDS: Final = 5.0
_RETIRE_AFTER_SECONDS: Final = 600.0
_LONGEST_BACKOFF_SECONDS: Final = 5.0
_READ_BYTES: Final = 64 * 1024
"""More than a TLS record holds, so that reading once leaves nothing in the TLS layer, where no poller would see it."""

# select.poll has the same methods and the same values of these events; it serves where there is no epoll.
_READ: Final = 0x001
_WRITE: Final = 0x004

E = TypeVar("E")
E_contra = TypeVar("E_contra", contravariant=True)
SocketAddress = tuple[socket.AddressFamily, Any]


class Owner(Protocol[E_contra]):
    """Whoever hands exchanges to a pool and is told how they end, and after how many seconds. No method may raise."""

    def answered_ordinarily(self, exchanges: Sequence[E_contra], seconds: list[float], now: float) -> None:
        """All that one `poll` has found answered with ORDINARY, at least one, and the seconds of each."""

    def answered(self, exchange: E_contra, answer: Answer, seconds: float, now: float) -> None: ...

    def failed(self, exchange: E_contra, reason: str, seconds: float, now: float) -> None:
        """No answer came, or none that can be read. The server may have seen the request all the same."""


class _Poller(Protocol):
    def register(self, fd: int, eventmask: int, /) -> None: ...
    def modify(self, fd: int, eventmask: int, /) -> Any: ...
    def unregister(self, fd: int, /) -> None: ...
    def poll(self, timeout: float, /) -> list[tuple[int, int]]: ...


class _Connection(Generic[E]):
    __slots__ = (
        "exchange", "fd", "opened_at", "read", "reader", "retire_at", "sock", "started_at", "step", "target",
        "unsent", "write"
    )  # fmt: skip

    def __init__(self, sock: socket.socket, target: SocketAddress, now: float) -> None:
        self.sock = sock
        self.target = target
        self.fd = sock.fileno()
        self.opened_at = now
        self.started_at = now
        self.retire_at = now + _RETIRE_AFTER_SECONDS * (0.75 + random.random() / 2)
        self.exchange: E | None = None
        self.unsent = b""
        self.reader = AnswerReader()
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


class Pool(Generic[E]):
    """At most `size` connections to `address`, with TLS if `tls` is given."""

    def __init__(self, address: Address, *, size: int, owner: Owner[E], tls: ssl.SSLContext | None) -> None:
        self.address = address
        self.size = size
        self.trouble: str | None = None
        """Why no connection can be opened, while none can."""
        self._owner = owner
        self._tls = tls
        self._poller: _Poller = select.epoll() if hasattr(select, "epoll") else select.poll()
        self._buffer = bytearray(_READ_BYTES)
        self._connections: dict[int, _Connection[E]] = {}
        self._idle: deque[_Connection[E]] = deque()
        self._opening: dict[int, _Connection[E]] = {}
        self._addresses: Sequence[SocketAddress] = ()
        self._next_address = 0
        self._failed_opens = 0
        self._open_again_at = float("-inf")

    def resolved(self, addresses: Sequence[SocketAddress]) -> None:
        """What the name resolves to now. Connections that are open stay until they retire."""
        self._addresses = addresses

    def unresolved(self, reason: str) -> None:
        """The name cannot be resolved now; addresses that were found before stay in use."""
        if not self._addresses:
            self.trouble = reason

    def fileno(self) -> int | None:
        """Readable when `poll` has something to do; None where the platform has no such thing."""
        return self._poller.fileno() if isinstance(self._poller, select.epoll) else None

    @property
    def open_connections(self) -> int:
        return len(self._connections) - len(self._opening)

    @property
    def busy(self) -> bool:
        """Is anything under way that a `poll` may find?"""
        return len(self._connections) > len(self._idle)

    @property
    def idle(self) -> int:
        """Connections that can take an exchange now."""
        return len(self._idle)

    @property
    def in_flight(self) -> int:
        """Exchanges that were handed over and have not ended."""
        return len(self._connections) - len(self._opening) - len(self._idle)

    def want(self, more: int, now: float) -> None:
        """Open connections for `more` exchanges that wait for one, as far as size, pace and back-off allow."""
        if not self._addresses or now < self._open_again_at:
            return
        limit = min(self.size - len(self._connections), OPENING_AT_ONCE - len(self._opening))
        if self._failed_opens:
            limit = min(limit, 1 - len(self._opening))
        for _ in range(min(limit, more - len(self._opening))):
            self._open(now)

    def send(self, exchange: E, request: bytes, now: float) -> None:
        """Hand an exchange over. Only while `idle` is true."""
        connection = self._idle.popleft()
        connection.exchange = exchange
        connection.started_at = now
        try:
            sent = connection.write(request)
        except (BlockingIOError, ssl.SSLWantWriteError):
            sent = 0
        except OSError:
            # The peer has closed it. It is not told here but in `poll`, where the end of file is read: an owner that
            # is called back while it sends would have to be ready for that.
            return
        if sent < len(request):
            connection.unsent = request[sent:]
            self._poller.modify(connection.fd, _READ | _WRITE)

    def poll(self, now: float) -> None:
        """Read all that has arrived, tell the owner, and go on with what is half written or half open."""
        connections, buffer, size = self._connections, self._buffer, _READ_BYTES
        idle = self._idle.append
        ordinary: list[E] = []
        seconds: list[float] = []
        for fd, events in self._poller.poll(0):
            connection = connections[fd]
            exchange = connection.exchange
            if exchange is None or events != _READ or connection.unsent:
                self._poll_other(connection, events, now)
                continue
            try:
                length = connection.read(size, buffer)
            except (BlockingIOError, ssl.SSLWantReadError):
                continue
            except OSError as error:
                self._close(connection, socket_error(error), now)
                continue
            if not connection.reader.is_ordinary(buffer, length):
                self._feed(connection, bytes(buffer[:length]), now)
                continue
            connection.exchange = None
            idle(connection)
            ordinary.append(exchange)
            seconds.append(now - connection.started_at)
        if ordinary:
            self._owner.answered_ordinarily(ordinary, seconds, now)

    def _poll_other(self, connection: _Connection[E], events: int, now: float) -> None:
        """What is rarer than an answer: opening, the rest of a request, an error, or something while idle."""
        if connection.step is not None:
            self._advance(connection, now)
            return
        if events & _WRITE and connection.unsent:
            self._write_rest(connection)
        if not events & ~_WRITE:
            return
        try:
            data = bytes(self._buffer[: connection.read(_READ_BYTES, self._buffer)])
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError as error:
            self._close(connection, socket_error(error), now)
            return
        if connection.exchange is None:
            self._close(connection, "", now)  # idle connections have nothing to say: it is closing, or out of step
        else:
            self._feed(connection, data, now)

    def sweep(self, now: float) -> None:
        """Time out what takes too long; call it about once a second."""
        for connection in list(self._connections.values()):
            if connection.step is not None:
                if now - connection.opened_at > _OPEN_TIMEOUT_SECONDS:
                    self._open_failed(connection, "timed out", now)
            elif connection.exchange is not None:
                if now - connection.started_at > ANSWER_TIMEOUT_SECONDS:
                    self._close(connection, "timeout", now)
            elif now > connection.retire_at:
                self._close(connection, "", now)

    def close(self) -> None:
        """Close every connection; exchanges under way end in `failed`."""
        for connection in list(self._connections.values()):
            self._close(connection, "closed", connection.started_at)
        if isinstance(self._poller, select.epoll):
            self._poller.close()

    # Opening: connect, then (with TLS) shake hands; `step` is what has to be tried again when the socket is ready.

    def _open(self, now: float) -> None:
        target = self._next_target()
        family, address = target
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:  # no file descriptor is left, or the host knows no such family
            self._back_off(socket_error(error), now, now)
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _Connection[E](sock, target, now)
        self._connections[connection.fd] = connection
        self._opening[connection.fd] = connection
        self._poller.register(connection.fd, _WRITE)
        failure = sock.connect_ex(address)

        def finish_connecting() -> None:
            if error_now := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error_now, "")
            if self._tls is not None:
                wrapped = self._tls.wrap_socket(
                    sock, server_hostname=self.address.hostname, do_handshake_on_connect=False
                )
                connection.use(wrapped)
                connection.step = wrapped.do_handshake
                wrapped.do_handshake()

        connection.step = finish_connecting
        if failure not in (0, *_IN_PROGRESS):
            self._open_failed(connection, socket_error(OSError(failure, "")), now)

    def _next_target(self) -> SocketAddress:
        """The next address that has not its share of the openings under way: where nobody answers, they hang."""
        share = math.ceil(OPENING_AT_ONCE / len(self._addresses))
        for _ in self._addresses:
            target = self._addresses[self._next_address % len(self._addresses)]
            self._next_address += 1
            if sum(each.target == target for each in self._opening.values()) < share:
                break
        return target

    def _advance(self, connection: _Connection[E], now: float) -> None:
        assert connection.step is not None  # noqa: S101 - only connections that are opening come here
        try:
            connection.step()
        except ssl.SSLWantReadError:
            self._poller.modify(connection.fd, _READ)
            return
        except ssl.SSLWantWriteError:
            self._poller.modify(connection.fd, _WRITE)
            return
        except OSError as error:
            self._open_failed(connection, socket_error(error), now)
            return
        except ValueError as error:  # the name is none that TLS can check
            self._open_failed(connection, f"tls: {error}", now)
            return
        connection.step = None
        del self._opening[connection.fd]
        self._poller.modify(connection.fd, _READ)
        self._idle.append(connection)
        self._failed_opens = 0
        self._open_again_at = now
        self.trouble = None

    def _open_failed(self, connection: _Connection[E], reason: str, now: float) -> None:
        self._close(connection, reason, now)
        self._back_off(reason, connection.opened_at, now)

    def _back_off(self, reason: str, opened_at: float, now: float) -> None:
        # What was begun before the last success or the last failure that counted tells nothing new: of several openings
        # that fail together one counts, and an address that always fails does not hold up those that answer.
        if opened_at >= self._open_again_at:
            self._failed_opens += 1
            self._open_again_at = now + backoff_seconds(
                self._failed_opens, 0.5 + random.random() / 2, longest=_LONGEST_BACKOFF_SECONDS
            )
        if not self.open_connections:
            self.trouble = f"cannot connect: {reason}"

    # Exchanges

    def _write_rest(self, connection: _Connection[E]) -> None:
        try:
            connection.unsent = connection.unsent[connection.write(connection.unsent) :]
        except (BlockingIOError, ssl.SSLWantWriteError):
            return
        except OSError:
            connection.unsent = b""  # the end of file that `_read` finds says the rest
        if not connection.unsent:
            self._poller.modify(connection.fd, _READ)

    def _feed(self, connection: _Connection[E], data: bytes, now: float) -> None:
        exchange = connection.exchange
        assert exchange is not None  # noqa: S101 - the callers have looked
        try:
            answer = connection.reader.feed(data)
        except MalformedAnswer as error:
            self._close(connection, "closed" if not data else f"malformed: {error}", now)
            return
        if answer is None:
            return
        connection.exchange = None
        if answer.reusable and not connection.unsent:
            self._idle.append(connection)
        else:
            self._close(connection, "", now)
        self._owner.answered(exchange, answer, now - connection.started_at, now)

    def _close(self, connection: _Connection[E], reason: str, now: float) -> None:
        del self._connections[connection.fd]
        self._opening.pop(connection.fd, None)
        with suppress(OSError, KeyError):  # wrapping a socket that is reset meanwhile has closed it already
            self._poller.unregister(connection.fd)
        connection.sock.close()
        if connection.exchange is None:
            if connection.step is None and connection in self._idle:
                self._idle.remove(connection)
            return
        exchange, connection.exchange = connection.exchange, None
        self._owner.failed(exchange, reason, now - connection.started_at, now)


_IN_PROGRESS: Final = (errno.EINPROGRESS, errno.EWOULDBLOCK)


def socket_error(error: OSError) -> str:
    """A few words for logs and readiness: never more than what went wrong."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"tls: {error.reason or error.__class__.__name__}"
    return os.strerror(error.errno) if error.errno else error.__class__.__name__
