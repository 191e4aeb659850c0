"""Keep-alive connections to one HTTP/1.1 server, polled on a tick: no task, timer, future or callback object a request.

Each connection carries one exchange at a time: the request goes out, its answer comes in, and the connection is ready
for the next one. The pool owns non-blocking sockets and a poller of its own instead of asyncio transports, because one
`poll` then reads what all connections have received in one go, and requests are written after all reads.

Always:
- of an exchange that was handed over the owner hears exactly once how it ended, in a later `poll`, `sweep` or `close`;
- a connection whose answer was malformed, late or not wanted is closed and never used again;
- connections are opened a few at a time, each to the next of the addresses that the name resolves to, and replaced with
  back-off when opening fails; after some minutes a connection is retired, so that the pool follows the name.

**Connections that died in silence.** A NAT gateway forgets a connection that was idle for some minutes, a server closes
it, and the next request learns of it. So the connection that became idle last is used first, and what stays idle is
closed, long before any network forgets it. Where a request fails all the same on a connection that was open before,
and not one byte of a response has come, it says nothing of the server: the pool asks the owner for the request anew,
sends it once more on a connection that is opened now, and closes all that have been idle about as long. The owner
hears only how that second request ends.
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

from worker.transport.connection import KEPT_SECONDS, Connection, SocketAddress, prepare, socket_error
from worker.transport.opening import Openings
from worker.transport.responses import MAX_BODY_BYTES, Answer, MalformedResponse
from worker.transport.signing import Address

RESPONSE_TIMEOUT_SECONDS: Final = 10.0
WARM_CONNECTIONS: Final = 2
"""So many stay open while nothing is to be sent."""
IDLE_SECONDS: Final = 60.0
"""How long the others may be idle."""
LONGEST_IDLE_SECONDS: Final = 240.0
"""How long any connection may be idle. The NAT gateways of AWS forget after 350 s."""
_OPEN_TIMEOUT_SECONDS: Final = 5.0
_READ_BYTES: Final = 64 * 1024
"""More than a TLS record holds, so that reading once leaves nothing in the TLS layer, where no poller would see it."""

# select.poll has the same methods and the same values of these events; it serves where there is no epoll.
_READ: Final = 0x001
_WRITE: Final = 0x004
_NOT_YET: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

E = TypeVar("E")
E_contra = TypeVar("E_contra", contravariant=True)


class ExchangeHandler(Protocol[E_contra]):
    """Whoever hands exchanges to a pool and is told how they end, and after how many seconds. No method may raise."""

    def on_plain_responses(self, exchanges: Sequence[E_contra], seconds: list[float], now: float) -> None:
        """All that one `poll` has found answered with ORDINARY, at least one, and the seconds of each."""

    def answered(self, exchange: E_contra, answer: Answer, seconds: float, now: float) -> None: ...

    def failed(self, exchange: E_contra, reason: str, seconds: float, now: float) -> None:
        """No answer came, or none that can be read. The server may have seen the request all the same."""

    def retry_request(self, exchange: E_contra, now: float) -> bytes | None:
        """The exchange's request anew, for its connection has died; asked at most once per exchange.

        None if it is not wanted any more: then it has ended, and the owner hears no more of it. The server may, rarely,
        have seen the first request.
        """


class _Poller(Protocol):
    def register(self, fd: int, eventmask: int, /) -> None: ...
    def modify(self, fd: int, eventmask: int, /) -> Any: ...
    def unregister(self, fd: int, /) -> None: ...
    def poll(self, timeout: float, /) -> list[tuple[int, int]]: ...


class _Retry(NamedTuple, Generic[E]):
    """An exchange whose connection has died, until a fresh one is open."""

    exchange: E
    started_at: float
    died_at: float


class Pool(Generic[E]):
    """At most `size` connections to `address`, with TLS if `tls` is given.

    `kept_body_bytes` is how much of an answer's body the owner wants to see.
    """

    def __init__(
        self,
        address: Address,
        *,
        size: int,
        owner: ExchangeHandler[E],
        tls: ssl.SSLContext | None,
        kept_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        self.address = address
        self.size = size
        self.problem: str | None = None
        """Why no connection can be opened, while none can."""
        self.retried = 0
        """Exchanges whose request was sent once more because their connection had died."""
        self._owner = owner
        self._tls = tls
        self._kept_body_bytes = kept_body_bytes
        self._poller: _Poller = select.epoll() if hasattr(select, "epoll") else select.poll()
        self._buffer = bytearray(_READ_BYTES)
        self._connections: dict[int, Connection[E]] = {}
        self._idle: list[Connection[E]] = []
        """The one that became idle last is the last."""
        self._opening: dict[int, Connection[E]] = {}
        self._openings = Openings()
        self._retries: deque[_Retry[E]] = deque()
        self._deadly_idle_seconds = float("inf")
        """The shortest time that a connection had been idle of those that were found dead since the last look."""

    def resolved(self, addresses: Sequence[SocketAddress]) -> None:
        """What the name resolves to now. Connections that are open stay until they retire."""
        self._openings.addresses = addresses

    def unresolved(self, reason: str) -> None:
        """The name cannot be resolved now; addresses that were found before stay in use."""
        if not self._openings.addresses:
            self.problem = reason

    def fileno(self) -> int | None:
        """Readable when `poll` has something to do; None where the platform has no such thing."""
        return self._poller.fileno() if isinstance(self._poller, select.epoll) else None

    @property
    def open_connections(self) -> int:
        return len(self._connections) - len(self._opening)

    @property
    def busy(self) -> bool:
        """Is anything under way that a `poll` may find?"""
        return len(self._connections) > len(self._idle) or bool(self._retries)

    @property
    def idle(self) -> int:
        """Connections that can take an exchange now."""
        return len(self._idle)

    @property
    def in_flight(self) -> int:
        """Exchanges that were handed over and have not ended."""
        return len(self._connections) - len(self._opening) - len(self._idle) + len(self._retries)

    def want(self, more: int, now: float) -> None:
        """Open connections for `more` exchanges that wait for one, as far as size, pace and back-off allow."""
        allowed = self._openings.allowed(len(self._opening), now)
        limit = min(self.size - len(self._connections), allowed)
        for _ in range(min(limit, more - len(self._opening))):
            self._open(now)

    def send(self, exchange: E, request: bytes, now: float) -> None:
        """Hand an exchange over. Only while `idle` is true."""
        connection = self._idle.pop()
        connection.exchange = exchange
        connection.started_at = now
        try:
            sent = connection.write(request)
        except (BlockingIOError, ssl.SSLWantWriteError):
            sent = 0
        except ssl.SSLWantReadError:
            connection.unsent = request  # the TLS layer has to hear from the peer first, which `poll` will see
            return
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
            ordinary.append(exchange)
            seconds.append(now - connection.started_at)
        if ordinary:
            self._owner.on_plain_responses(ordinary, seconds, now)
        if self._retries:
            self._go_on_with_retries(now)

    def _poll_other(self, connection: Connection[E], events: int, now: float) -> None:
        """What is rarer than an answer: opening, the rest of a request, an error, or something while idle."""
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
            self._idle.remove(connection)  # idle connections have nothing to say: it is closing, or out of step
            self._forget(connection)
        else:
            self._feed(connection, data, now)

    def sweep(self, now: float) -> None:
        """Time out what takes too long, and close what was idle for too long; call it about once a second."""
        surplus = min(bisect_right(self._idle, now - IDLE_SECONDS, key=_idle_since), len(self._idle) - WARM_CONNECTIONS)
        self._close_idle(max(surplus, bisect_right(self._idle, now - LONGEST_IDLE_SECONDS, key=_idle_since)))
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
                self._forget(connection)
        self._close_suspects(now)

    def close(self) -> None:
        """Close every connection; exchanges under way end in `failed`."""
        self._close_idle(len(self._idle))
        for connection in list(self._connections.values()):
            if connection.exchange is None:
                self._forget(connection)
            else:
                self._fail(connection, "closed", connection.started_at)
        self._opening.clear()
        while self._retries:
            retry = self._retries.popleft()
            self._owner.failed(retry.exchange, "closed", 0.0, retry.started_at)
        if isinstance(self._poller, select.epoll):
            self._poller.close()

    # Opening: connect, then (with TLS) shake hands; `step` is what has to be tried again when the socket is ready.

    def _open(self, now: float) -> None:
        target = self._openings.next_target([each.target for each in self._opening.values()])
        family, address = target
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:  # no file descriptor is left, or the host knows no such family
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
        except ValueError as error:  # the name is none that TLS can check
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
        self._forget(connection)
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
            events = _READ  # the TLS layer has to hear from the peer first; that it could write says nothing
        except OSError:
            connection.unsent = b""  # the end of file that `_read` finds says the rest
        self._poller.modify(connection.fd, events if connection.unsent else _READ)

    def _feed(self, connection: Connection[E], data: bytes, now: float) -> None:
        exchange = connection.exchange
        assert exchange is not None  # noqa: S101 - the callers have looked
        if not data and not connection.reader.begun:
            self._ended(connection, "closed", now)
            return
        try:
            answer = connection.reader.feed(data)
        except MalformedResponse as error:
            self._fail(connection, "closed" if not data else f"malformed: {error}", now)
            return
        if answer is None:
            return
        connection.exchange = None
        if answer.reusable and not connection.unsent:
            connection.idle_since = now
            self._idle.append(connection)
        else:
            self._forget(connection)
        self._owner.answered(exchange, answer, now - connection.started_at, now)

    def _ended(self, connection: Connection[E], reason: str, now: float) -> None:
        """The peer, or the network, has ended it. A kept one from which no response came had died before."""
        exchange = connection.exchange
        if exchange is None:
            self._idle.remove(connection)
            self._forget(connection)
        elif connection.reader.begun or not connection.kept:
            self._fail(connection, reason, now)
        else:
            self._suspect_others(connection)
            self._forget(connection)
            self._retries.append(_Retry(exchange, connection.started_at, now))

    def _fail(self, connection: Connection[E], reason: str, now: float) -> None:
        exchange = connection.exchange
        assert exchange is not None  # noqa: S101 - the callers have looked
        self._forget(connection)
        self._owner.failed(exchange, reason, now - connection.started_at, now)

    def _forget(self, connection: Connection[E]) -> None:
        """Close a connection that is neither idle nor being opened any more."""
        del self._connections[connection.fd]
        with suppress(OSError, KeyError):  # wrapping a socket that is reset meanwhile has closed it already
            self._poller.unregister(connection.fd)
        connection.sock.close()

    # Connections that have died. Others are closed and opened only when all events of a `poll` have been seen: one of
    # them may be of a connection that would be closed, and a new one could get its descriptor.

    def _suspect_others(self, connection: Connection[E]) -> None:
        if connection.idle_before >= KEPT_SECONDS:
            self._deadly_idle_seconds = min(self._deadly_idle_seconds, connection.idle_before)

    def _close_suspects(self, now: float) -> None:
        """What was idle half as long as one that has died is not worth trying."""
        self._close_idle(bisect_right(self._idle, now - self._deadly_idle_seconds / 2, key=_idle_since))
        self._deadly_idle_seconds = float("inf")

    def _close_idle(self, number: int) -> None:
        """The `number` that have been idle for longest."""
        if number > 0:
            closing = self._idle[:number]
            del self._idle[:number]
            for connection in closing:
                self._forget(connection)

    def _go_on_with_retries(self, now: float) -> None:
        """Open connections for them, or say why none can be had."""
        self._close_suspects(now)
        while self._retries and self._retries[0].died_at < self._openings.failed_at:
            retry = self._retries.popleft()
            self._owner.failed(retry.exchange, self._openings.failure, now - retry.started_at, now)
        self.want(len(self._retries), now)

    def _send_retry(self, now: float) -> None:
        """On the connection that has been opened just now, if one waits for it."""
        while self._retries:
            retry = self._retries.popleft()
            request = self._owner.retry_request(retry.exchange, now)
            if request is not None:
                self.retried += 1
                connection = self._idle[-1]
                self.send(retry.exchange, request, now)
                connection.started_at = retry.started_at
                return


def _idle_since(connection: Connection[Any]) -> float:
    return connection.idle_since


_IN_PROGRESS: Final = (errno.EINPROGRESS, errno.EWOULDBLOCK)
