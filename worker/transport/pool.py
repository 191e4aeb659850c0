"""Keep-alive connections to one HTTP/1.1 server, polled on a tick: no task, timer, future or callback per request.

Each connection carries one exchange at a time: it sends the request, receives the response, and is then ready for the
next exchange. The pool owns non-blocking sockets and a poller of its own instead of asyncio transports, because one
`poll` then reads what all connections have received, and requests are written after all reads.

Always:
- the handler is notified exactly once of how each exchange that was sent ends, in a later `poll`, `sweep` or `close`;
- a connection whose response was malformed, late or unexpected is closed and never reused;
- connections are opened a few at a time, each to the next of the addresses that the name resolves to, with back-off
  when opening fails; after some minutes a connection is retired, so that the pool follows changes in DNS.

**Stale connections.** A NAT gateway drops a connection that was idle for some minutes, or the server closes it, and
only the next request reveals it. So the connection that became idle last is used first, and connections that stay idle
are closed long before a network drops them. If a request still fails on a connection that was open before, and no byte
of a response has arrived, this is no evidence against the server: the pool gets a new request from the handler, sends
it on a new connection, and closes all connections that have been idle about as long. The handler is notified only of
how this second request ends.
"""

import errno
import select
import socket
import ssl
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from worker.transport.connection import STALE_AFTER_SECONDS, Connection, SocketAddress, prepare, socket_error
from worker.transport.opening import Openings
from worker.transport.responses import MAX_BODY_BYTES, MalformedResponse, Response
from worker.transport.signing import Address

RESPONSE_TIMEOUT_SECONDS: Final = 10.0
WARM_CONNECTIONS: Final = 2
"""How many connections stay open while there is nothing to send."""
IDLE_SECONDS: Final = 60.0
"""How long further connections may be idle."""
MAX_IDLE_SECONDS: Final = 240.0
"""How long any connection may be idle. AWS NAT gateways drop connections after 350 s."""
_OPEN_TIMEOUT_SECONDS: Final = 5.0
_READ_BYTES: Final = 64 * 1024
"""More than a TLS record holds: one read leaves nothing in the TLS layer, where the poller would not see it."""

# select.poll has the same methods and event values; it is used where there is no epoll.
_READ: Final = 0x001
_WRITE: Final = 0x004
_NOT_YET: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

E = TypeVar("E")
E_contra = TypeVar("E_contra", contravariant=True)


class ExchangeHandler(Protocol[E_contra]):
    """The owner of a pool: it is notified of how exchanges end, and after how many seconds. No method may raise."""

    def on_plain_responses(self, exchanges: Sequence[E_contra], seconds: list[float], now: float) -> None:
        """The exchanges, at least one, for which one `poll` has read PLAIN_200, and the seconds of each."""

    def on_response(self, exchange: E_contra, response: Response, seconds: float, now: float) -> None: ...

    def on_failure(self, exchange: E_contra, reason: str, seconds: float, now: float) -> None:
        """No response arrived, or a malformed one. The server may have received the request nevertheless."""

    def retry_request(self, exchange: E_contra, now: float) -> bytes | None:
        """A new request for the exchange, whose connection was stale. Called at most once per exchange.

        None drops the exchange: the handler is not notified of it again. In rare cases, the server has received the
        first request.
        """


class _Poller(Protocol):
    def register(self, fd: int, eventmask: int, /) -> None: ...
    def modify(self, fd: int, eventmask: int, /) -> Any: ...
    def unregister(self, fd: int, /) -> None: ...
    def poll(self, timeout: float, /) -> list[tuple[int, int]]: ...


class _Retry(NamedTuple, Generic[E]):
    """An exchange whose connection was stale, until a new one is open."""

    exchange: E
    started_at: float
    found_stale_at: float


class Pool(Generic[E]):
    """At most `size` connections to `address`, with TLS if `tls` is given.

    `kept_body_bytes` is how much of a response's body is passed to the handler.
    """

    def __init__(
        self,
        address: Address,
        *,
        size: int,
        handler: ExchangeHandler[E],
        tls: ssl.SSLContext | None,
        kept_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        self.address = address
        self.size = size
        self.problem: str | None = None
        """Why no connection can be opened; None if connections can be."""
        self.retried = 0
        """The number of exchanges whose request was sent again because their connection was stale."""
        self._handler = handler
        self._tls = tls
        self._kept_body_bytes = kept_body_bytes
        self._poller: _Poller = select.epoll() if hasattr(select, "epoll") else select.poll()
        self._buffer = bytearray(_READ_BYTES)
        self._connections: dict[int, Connection[E]] = {}
        self._idle: list[Connection[E]] = []
        """In the order in which they became idle."""
        self._opening: dict[int, Connection[E]] = {}
        self._openings = Openings()
        self._retries: deque[_Retry[E]] = deque()
        self._stale_idle_seconds = float("inf")
        """The shortest idle time of the connections that were found stale since the last check."""

    def resolved(self, addresses: Sequence[SocketAddress]) -> None:
        """Set the addresses that the name resolves to now. Open connections stay until they retire."""
        self._openings.addresses = addresses

    def unresolved(self, reason: str) -> None:
        """Record that the name cannot be resolved now. Addresses that were found before stay in use."""
        if not self._openings.addresses:
            self.problem = reason

    def fileno(self) -> int | None:
        """A descriptor that is readable when `poll` has something to do; None where there is no epoll."""
        return self._poller.fileno() if isinstance(self._poller, select.epoll) else None

    @property
    def open_connections(self) -> int:
        return len(self._connections) - len(self._opening)

    @property
    def busy(self) -> bool:
        """Whether a `poll` may find anything: a connection is in use or being opened, or a retry waits."""
        return len(self._connections) > len(self._idle) or bool(self._retries)

    @property
    def idle(self) -> int:
        """The number of connections that can carry an exchange now."""
        return len(self._idle)

    @property
    def in_flight(self) -> int:
        """The number of exchanges that were sent and have not ended."""
        return len(self._connections) - len(self._opening) - len(self._idle) + len(self._retries)

    def request_connections(self, more: int, now: float) -> None:
        """Open connections for `more` exchanges that wait for one, as far as size, opening limit and back-off allow."""
        allowed = self._openings.allowed(len(self._opening), now)
        limit = min(self.size - len(self._connections), allowed)
        for _ in range(min(limit, more - len(self._opening))):
            self._open(now)

    def send(self, exchange: E, request: bytes, now: float) -> None:
        """Start an exchange. Only allowed while `idle` is not 0."""
        connection = self._idle.pop()
        connection.exchange = exchange
        connection.started_at = now
        try:
            sent = connection.write(request)
        except (BlockingIOError, ssl.SSLWantWriteError):
            sent = 0
        except ssl.SSLWantReadError:
            connection.unsent = request  # the TLS layer has to read from the peer first; `poll` will continue
            return
        except OSError:
            # The peer has closed it. `poll` reports that when it reads the end of file: if it were reported here, the
            # handler would be called while it sends, and would have to be reentrant.
            return
        if sent < len(request):
            connection.unsent = request[sent:]
            self._poller.modify(connection.fd, _READ | _WRITE)

    def poll(self, now: float) -> None:
        """Read all that has arrived, notify the handler, and continue partial writes and openings."""
        connections, buffer, size = self._connections, self._buffer, _READ_BYTES
        idle = self._idle.append
        plain: list[E] = []
        seconds: list[float] = []
        for fd, events in self._poller.poll(0):
            connection = connections[fd]
            exchange = connection.exchange
            if exchange is None or events != _READ or connection.unsent:
                self._poll_other(connection, events, now)
                continue
            try:
                length = connection.read(size, buffer)
            except _NOT_YET:
                continue
            except OSError as error:
                self._ended(connection, socket_error(error), now)
                continue
            if not connection.reader.is_plain_200(buffer, length):
                self._feed(connection, bytes(buffer[:length]), now)
                continue
            connection.exchange = None
            connection.idle_since = now
            idle(connection)
            plain.append(exchange)
            seconds.append(now - connection.started_at)
        if plain:
            self._handler.on_plain_responses(plain, seconds, now)
        if self._retries:
            self._continue_retries(now)

    def _poll_other(self, connection: Connection[E], events: int, now: float) -> None:
        """Handle events other than a response: an opening, the rest of a request, an error, or input while idle."""
        if connection.step is not None:
            self._advance(connection, now)
            return
        if connection.unsent:
            self._write_rest(connection)
        if not events & ~_WRITE:
            return
        try:
            data = bytes(self._buffer[: connection.read(_READ_BYTES, self._buffer)])
        except _NOT_YET:
            return
        except OSError as error:
            self._ended(connection, socket_error(error), now)
            return
        if connection.exchange is None:
            self._idle.remove(connection)  # no input is expected while idle: the peer is closing or out of sync
            self._drop(connection)
        else:
            self._feed(connection, data, now)

    def sweep(self, now: float) -> None:
        """Apply all time-outs and idle limits. To be called about once per second."""
        surplus = min(bisect_right(self._idle, now - IDLE_SECONDS, key=_idle_since), len(self._idle) - WARM_CONNECTIONS)
        self._close_idle(max(surplus, bisect_right(self._idle, now - MAX_IDLE_SECONDS, key=_idle_since)))
        for connection in list(self._connections.values()):
            if connection.step is not None:
                if now - connection.opened_at > _OPEN_TIMEOUT_SECONDS:
                    self._open_failed(connection, "timed out", now)
            elif connection.exchange is not None:
                if now - connection.started_at > RESPONSE_TIMEOUT_SECONDS:
                    self._suspect_others(connection)
                    self._fail(connection, "timeout", now)
            elif now > connection.retire_at:
                self._idle.remove(connection)
                self._drop(connection)
        self._close_suspects(now)

    def close(self) -> None:
        """Close every connection. Exchanges in flight end in `on_failure`."""
        self._close_idle(len(self._idle))
        for connection in list(self._connections.values()):
            if connection.exchange is None:
                self._drop(connection)
            else:
                self._fail(connection, "closed", connection.started_at)
        self._opening.clear()
        while self._retries:
            retry = self._retries.popleft()
            self._handler.on_failure(retry.exchange, "closed", 0.0, retry.started_at)
        if isinstance(self._poller, select.epoll):
            self._poller.close()

    # Opening: connect, then (with TLS) shake hands. `step` is called whenever the socket is ready.

    def _open(self, now: float) -> None:
        target = self._openings.next_target([each.target for each in self._opening.values()])
        family, address = target
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:  # no file descriptor is left, or the host does not support this family
            self._back_off(socket_error(error), now, now)
            return
        prepare(sock)
        connection = Connection[E](sock, target, self._kept_body_bytes, now)
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

    def _advance(self, connection: Connection[E], now: float) -> None:
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
        except ValueError as error:  # TLS cannot verify this host name
            self._open_failed(connection, f"tls: {error}", now)
            return
        connection.opened(now)
        del self._opening[connection.fd]
        self._poller.modify(connection.fd, _READ)
        self._idle.append(connection)
        self._openings.succeeded(now)
        self.problem = None
        self._send_retry(now)

    def _open_failed(self, connection: Connection[E], reason: str, now: float) -> None:
        del self._opening[connection.fd]
        self._drop(connection)
        self._back_off(reason, connection.opened_at, now)

    def _back_off(self, reason: str, began_at: float, now: float) -> None:
        self._openings.failed(reason, began_at, now)
        if not self.open_connections:
            self.problem = f"cannot connect: {reason}"

    # Exchanges

    def _write_rest(self, connection: Connection[E]) -> None:
        events = _READ | _WRITE
        try:
            connection.unsent = connection.unsent[connection.write(connection.unsent) :]
        except (BlockingIOError, ssl.SSLWantWriteError):
            pass
        except ssl.SSLWantReadError:
            events = _READ  # the TLS layer has to read from the peer first; that the socket is writable does not help
        except OSError:
            connection.unsent = b""  # the following `poll` reads the end of file and reports it
        self._poller.modify(connection.fd, events if connection.unsent else _READ)

    def _feed(self, connection: Connection[E], data: bytes, now: float) -> None:
        exchange = connection.exchange
        assert exchange is not None  # noqa: S101 - checked by the callers
        if not data and not connection.reader.begun:
            self._ended(connection, "closed", now)
            return
        try:
            response = connection.reader.feed(data)
        except MalformedResponse as error:
            self._fail(connection, "closed" if not data else f"malformed: {error}", now)
            return
        if response is None:
            return
        connection.exchange = None
        if response.reusable and not connection.unsent:
            connection.idle_since = now
            self._idle.append(connection)
        else:
            self._drop(connection)
        self._handler.on_response(exchange, response, now - connection.started_at, now)

    def _ended(self, connection: Connection[E], reason: str, now: float) -> None:
        """The peer or the network has ended a connection. If it may have been stale, its exchange is retried."""
        exchange = connection.exchange
        if exchange is None:
            self._idle.remove(connection)
            self._drop(connection)
        elif connection.reader.begun or not connection.may_be_stale:
            self._fail(connection, reason, now)
        else:
            self._suspect_others(connection)
            self._drop(connection)
            self._retries.append(_Retry(exchange, connection.started_at, now))

    def _fail(self, connection: Connection[E], reason: str, now: float) -> None:
        exchange = connection.exchange
        assert exchange is not None  # noqa: S101 - checked by the callers
        self._drop(connection)
        self._handler.on_failure(exchange, reason, now - connection.started_at, now)

    def _drop(self, connection: Connection[E]) -> None:
        """Close a connection that is no longer idle or being opened."""
        del self._connections[connection.fd]
        with suppress(OSError, KeyError):  # wrapping a socket that was reset meanwhile has closed it
            self._poller.unregister(connection.fd)
        connection.sock.close()

    # Stale connections. Others are closed and opened only after all events of a `poll` have been handled: an event may
    # belong to a connection that would be closed, and a new connection could get its descriptor.

    def _suspect_others(self, connection: Connection[E]) -> None:
        if connection.idle_before >= STALE_AFTER_SECONDS:
            self._stale_idle_seconds = min(self._stale_idle_seconds, connection.idle_before)

    def _close_suspects(self, now: float) -> None:
        """Close connections that were idle at least half as long as one that was stale: they may be stale, too."""
        self._close_idle(bisect_right(self._idle, now - self._stale_idle_seconds / 2, key=_idle_since))
        self._stale_idle_seconds = float("inf")

    def _close_idle(self, number: int) -> None:
        """Close the `number` connections that have been idle longest."""
        if number > 0:
            closing = self._idle[:number]
            del self._idle[:number]
            for connection in closing:
                self._drop(connection)

    def _continue_retries(self, now: float) -> None:
        """Open connections for retries, or fail those for which none can be opened."""
        self._close_suspects(now)
        while self._retries and self._retries[0].found_stale_at < self._openings.failed_at:
            retry = self._retries.popleft()
            self._handler.on_failure(retry.exchange, self._openings.failure, now - retry.started_at, now)
        self.request_connections(len(self._retries), now)

    def _send_retry(self, now: float) -> None:
        """Send the next retry, if there is one, on the connection that was just opened."""
        while self._retries:
            retry = self._retries.popleft()
            request = self._handler.retry_request(retry.exchange, now)
            if request is not None:
                self.retried += 1
                connection = self._idle[-1]
                self.send(retry.exchange, request, now)
                connection.started_at = retry.started_at
                return


def _idle_since(connection: Connection[Any]) -> float:
    return connection.idle_since


_IN_PROGRESS: Final = (errno.EINPROGRESS, errno.EWOULDBLOCK)
