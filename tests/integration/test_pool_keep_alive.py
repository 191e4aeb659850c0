"""The pool's keep-alive connections: which are used, for how long, and how requests on dead ones are retried."""

import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable

import pytest

from tests.nat import can_drop_packets, drop_incoming
from tests.pool_driver import GONE, REQUEST, RESPONSE, Driver, Server, Tls, driving, reset, serving
from worker.transport.connection import Connection
from worker.transport.pool import (
    IDLE_SECONDS,
    MAX_IDLE_SECONDS,
    RESPONSE_TIMEOUT_SECONDS,
    WARM_CONNECTIONS,
    Pool,
)

IDLE = 30.0
"""Seconds; less than the pool's idle timeout."""
ENDINGS: dict[str, Callable[[socket.socket], None]] = {"reset": reset, "close": socket.socket.close}


def respond(sock: socket.socket) -> None:
    sock.sendall(RESPONSE)


class PerConnection:
    """Handles the nth request of each connection with the behaviour `r{n}`, and responds to all others."""

    def __init__(self, **nth: Callable[[socket.socket], None]) -> None:
        self._nth = {int(name.removeprefix("r")): behaviour for name, behaviour in nth.items()}
        self.requests: Counter[socket.socket] = Counter()

    def __call__(self, _: int, sock: socket.socket) -> None:
        self.requests[sock] += 1
        self._nth.get(self.requests[sock], respond)(sock)


def connections(pool: Pool[str]) -> list[Connection[str]]:
    return list(pool._connections.values())


def fill(driver: Driver, size: int) -> None:
    """Open that many connections, and use each for one exchange."""
    driver.wanted = size
    driver.poll_until(lambda: driver.pool.idle == size)
    for number in range(size):
        driver.pool.send(f"filling {number}", REQUEST, driver.time)
    driver.poll_until(lambda: driver.pool.idle == size)
    driver.wanted = 0
    assert len(driver.recorder.responses) == size


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_request_on_a_dead_connection_is_retried_once_on_a_new_one(tls: Tls, ending: str) -> None:
    with serving(PerConnection(r2=ENDINGS[ending]), tls) as server, driving(server, tls) as driver:
        driver.exchange("first")
        driver.exchange("second")
        assert driver.recorder.retried == ["second"]
        assert driver.recorder.responses["second"].status == 200
        assert not driver.recorder.failures
        assert server.accepted == 2
        assert server.requests == 3


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_retry_on_a_new_connection_can_fail(ending: str) -> None:
    def behave(number: int, sock: socket.socket) -> None:
        if number == 1:
            sock.sendall(RESPONSE)
        else:
            ENDINGS[ending](sock)

    with Server(behave) as server, Driver(server.port) as driver:
        driver.exchange("first")
        driver.exchange("second")
        assert driver.recorder.retried == ["second"]
        assert set(driver.recorder.failures) == {"second"}
        assert server.requests == 3


@pytest.mark.parametrize("ending", ENDINGS)
def test_after_the_first_byte_of_a_response_there_is_no_retry(ending: str) -> None:
    def cut(sock: socket.socket) -> None:
        sock.sendall(RESPONSE[:1])
        ENDINGS[ending](sock)

    with Server(PerConnection(r2=cut)) as server, Driver(server.port) as driver:
        driver.exchange("first")
        driver.exchange("second")
        assert set(driver.recorder.failures) == {"second"}
        assert not driver.recorder.retried


def test_a_failure_on_a_new_connection_is_not_retried() -> None:
    with Server(PerConnection(r1=reset)) as server, Driver(server.port) as driver:
        driver.exchange("first")
        assert set(driver.recorder.failures) == {"first"}
        assert not driver.recorder.retried


def test_a_request_on_a_connection_idle_since_its_opening_is_retried() -> None:
    behaviours = iter([reset, respond])
    with Server(lambda _, sock: next(behaviours)(sock)) as server, Driver(server.port) as driver:
        driver.poll_until(lambda: driver.pool.idle == 1)
        driver.time += IDLE
        driver.exchange("first")
        assert driver.recorder.retried == ["first"]
        assert driver.recorder.responses["first"].status == 200


def test_an_exchange_whose_retry_is_declined_ends() -> None:
    with Server(PerConnection(r2=reset)) as server, Driver(server.port) as driver:
        driver.exchange("first")
        driver.recorder.unwanted.add("second")
        driver.pool.send("second", REQUEST, driver.time)
        driver.poll_until(lambda: driver.recorder.retried == ["second"])
        assert driver.pool.in_flight == 0
        driver.exchange("third")
        assert set(driver.recorder.responses) == {"first", "third"}
        assert not driver.recorder.failures
        assert server.requests == 3


def test_if_no_new_connection_can_be_opened_the_exchange_fails_with_the_reason() -> None:
    with Server(PerConnection(r2=reset)) as server, Driver(server.port) as driver:
        driver.exchange("first")
        driver.pool.send("second", REQUEST, driver.time)
        with socket.create_server(("127.0.0.1", 0)) as closed:
            refusing = closed.getsockname()
        driver.pool.resolved([(socket.AF_INET, refusing)])
        driver.poll_until(lambda: "second" in driver.recorder.failures)
        assert driver.recorder.failures == {"second": "Connection refused"}
        assert not driver.recorder.retried
        assert driver.pool.in_flight == 0


def test_an_exchange_waiting_for_a_new_connection_is_in_flight_and_ends_with_the_pool() -> None:
    with Server(PerConnection(r2=reset)) as server, Driver(server.port) as driver:
        driver.exchange("first")
        driver.pool.resolved([])
        driver.pool.send("second", REQUEST, driver.time)
        driver.poll_until(lambda: driver.pool.open_connections == 0)
        assert driver.pool.in_flight == 1
        assert driver.pool.busy
        assert not driver.recorder.failures
        driver.pool.close()
        assert driver.recorder.failures == {"second": "closed"}


def test_all_connections_may_die_at_the_same_moment(tls: Tls) -> None:
    """The poll that finds the first one dead also has the others' events, whose descriptors are soon reused."""
    accepted: list[socket.socket] = []
    lock = threading.Lock()

    def behave(number: int, sock: socket.socket) -> None:
        with lock:
            if number <= 20:
                accepted.append(sock)
            if number == 21:
                for each in accepted:
                    reset(each)
                return
        sock.sendall(RESPONSE)

    with serving(behave, tls) as server, driving(server, tls, size=20) as driver:
        fill(driver, 20)
        driver.time += IDLE
        for number in range(10):
            driver.pool.send(str(number), REQUEST, driver.time)
        driver.poll_until(lambda: len(driver.recorder.responses) == 30)
        assert not driver.recorder.failures
        assert sorted(driver.recorder.retried) == [str(number) for number in range(10)]
        assert server.accepted == 30


def test_the_connection_that_became_idle_last_is_used_first() -> None:
    behaviour = PerConnection()
    with Server(behaviour) as server, Driver(server.port, size=5) as driver:
        fill(driver, 5)
        for number in range(10):
            driver.exchange(str(number))
        assert sorted(behaviour.requests.values()) == [1, 1, 1, 1, 11]


def test_a_dead_connection_that_was_idle_briefly_closes_no_others() -> None:
    with Server(PerConnection(r3=reset)) as server, Driver(server.port, size=10) as driver:
        fill(driver, 10)
        driver.time += IDLE
        driver.exchange("second")
        driver.exchange("third")
        assert driver.recorder.retried == ["third"]
        assert driver.pool.open_connections == 10


def test_a_dead_connection_closes_those_idle_as_long_and_no_others() -> None:
    requests: Counter[socket.socket] = Counter()

    def behave(number: int, sock: socket.socket) -> None:
        requests[sock] += 1
        if number > 13 and requests[sock] == 2:
            reset(sock)
        else:
            sock.sendall(RESPONSE)

    with Server(behave) as server, Driver(server.port, size=10) as driver:
        fill(driver, 10)
        driver.time += IDLE
        for sent in (3, 4):
            for number in range(sent):
                driver.pool.send(f"{number} of {sent}", REQUEST, driver.time)
            driver.poll_until(lambda: driver.pool.in_flight == 0)
        assert driver.recorder.retried == ["3 of 4"], "it used a connection that had been idle since the start"
        assert driver.pool.open_connections == 4, "three recently used connections, and a new one"
        assert not driver.recorder.failures


def test_connections_that_died_together_are_closed_on_the_first_use_of_one() -> None:
    behaviour = PerConnection(r2=reset)
    with Server(behaviour) as server, Driver(server.port, size=10) as driver:
        fill(driver, 10)
        driver.time += IDLE
        driver.exchange("next")
        assert driver.recorder.retried == ["next"]
        assert driver.pool.open_connections == 1
        assert server.requests == 12


def test_idle_connections_are_closed_except_for_a_few_and_finally_those() -> None:
    with Server(PerConnection()) as server, Driver(server.port, size=10) as driver:
        fill(driver, 10)
        driver.time += IDLE_SECONDS - 1
        driver.pool.sweep(driver.time)
        assert driver.pool.open_connections == 10
        driver.exchange("newest")
        driver.time += 2
        driver.pool.sweep(driver.time)
        assert driver.pool.open_connections == WARM_CONNECTIONS
        driver.time += MAX_IDLE_SECONDS - 3
        driver.pool.sweep(driver.time)
        assert driver.pool.open_connections == 1, "the most recently used one"
        driver.time += 4
        driver.pool.sweep(driver.time)
        assert driver.pool.open_connections == 0


def test_a_request_that_times_out_is_not_retried() -> None:
    with Server(PerConnection(r2=lambda _: None)) as server, Driver(server.port, size=3) as driver:
        fill(driver, 3)
        driver.time += IDLE
        driver.pool.send("late", REQUEST, driver.time)
        driver.poll_until(lambda: server.requests == 4)
        driver.time += RESPONSE_TIMEOUT_SECONDS + 1
        driver.pool.sweep(driver.time)
        assert driver.recorder.failures == {"late": "timeout"}
        assert not driver.recorder.retried
        assert driver.pool.open_connections == 0, "the others may be dead, too"
        assert server.requests == 4


@pytest.mark.skipif(not can_drop_packets(), reason="requires a kernel that can drop a connection's packets")
def test_a_request_without_tcp_acknowledgement_fails_before_the_response_timeout() -> None:
    with Server(PerConnection()) as server, Driver(server.port) as driver:
        driver.exchange("first")
        drop_incoming(server._sockets[0])
        driver.exchange("second")  # the pool is not swept: only the kernel can time it out
        assert driver.recorder.retried == ["second"]
        assert driver.recorder.responses["second"].status == 200


def test_idle_connections_are_probed_and_unacknowledged_requests_time_out() -> None:
    with Server(PerConnection()) as server, Driver(server.port) as driver:
        driver.exchange("first")
        (connection,) = connections(driver.pool)
        assert connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_USER_TIMEOUT"):
            option = getattr(socket, name, None)
            seconds = option and connection.sock.getsockopt(socket.IPPROTO_TCP, option)
            assert seconds is None or 0 < seconds / (1000 if name == "TCP_USER_TIMEOUT" else 1) <= 60


class ReadsFirst:
    """A TLS layer that cannot continue to write until it has read a record from the peer."""

    def __init__(self, connection: Connection[str], writes_before: int) -> None:
        self.waiting = threading.Event()
        self.attempts = 0
        self._sock = connection.sock
        self._writes_before = writes_before
        self._has_read = False
        connection.write = self.write

    def write(self, data: bytes) -> int:
        if self._writes_before:
            self._writes_before -= 1
            return self._sock.send(data[:10])
        self.attempts += 1
        if not self._has_read:
            try:
                assert self._sock.recv(1) == b"!"
            except BlockingIOError:
                self.waiting.set()
                raise ssl.SSLWantReadError from None
            self._has_read = True
        return self._sock.send(data)


@pytest.mark.parametrize("writes_before", [0, 1, 2])
def test_a_tls_layer_that_must_read_before_writing_truncates_no_request(writes_before: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        received: list[bytes] = []
        layers: list[ReadsFirst] = []

        def serve() -> None:
            sock, _ = listening.accept()
            with sock:
                while not layers:
                    threading.Event().wait(0.001)
                layers[0].waiting.wait(10)
                threading.Event().wait(0.05)  # nothing may be attempted meanwhile, because nothing has arrived
                sock.sendall(b"!")
                while not b"".join(received).endswith(b"hello"):
                    received.append(sock.recv(65536))
                sock.sendall(GONE)
                sock.recv(1)

        server = threading.Thread(target=serve, daemon=True)
        server.start()
        with Driver(listening.getsockname()[1]) as driver:
            driver.poll_until(lambda: driver.pool.idle == 1)
            layers.append(ReadsFirst(connections(driver.pool)[0], writes_before))
            driver.exchange("first")
            assert driver.recorder.responses["first"].status == 410
            assert b"".join(received) == REQUEST
            assert layers[0].attempts == 2
        server.join()


@pytest.mark.parametrize("kept", [0, 10, 4096])
def test_of_a_body_at_most_the_given_length_is_kept(tls: Tls, kept: int) -> None:
    body = bytes(range(256)) * 4_000
    encodings = iter([
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body),
        b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body),
        b"Content-Length: 4\r\n\r\ngone",
        b"Connection: close\r\n\r\n" + body,
    ])  # fmt: skip

    def behave(number: int, sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 503 Unavailable\r\n" + next(encodings))
        if number == 4:
            sock.close()

    with (
        serving(behave, tls) as server,
        Driver(server.port, tls=tls[1] if tls else None, kept_body_bytes=kept) as driver,
    ):
        for number in range(4):
            driver.exchange(str(number))
        bodies = [response.body for response in driver.recorder.responses.values()]
        assert bodies == [body[:kept], body[:kept], b"gone"[:kept], body[:kept]]
        assert {response.status for response in driver.recorder.responses.values()} == {503}
        assert server.accepted == 1, "the rest of the body is read, too"
