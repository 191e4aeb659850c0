"""Connections that the pool keeps: which it uses, for how long, and what becomes of a request on one that has died."""

import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable

import pytest

from tests.nat import drop_what_arrives, silence_can_be_played
from tests.pool_driver import ANSWER, GONE, REQUEST, Driver, Server, Tls, driving, reset, serving
from worker.transport.connection import Connection
from worker.transport.pool import (
    IDLE_SECONDS,
    LONGEST_IDLE_SECONDS,
    RESPONSE_TIMEOUT_SECONDS,
    WARM_CONNECTIONS,
    Pool,
)

IDLE = 30.0
"""Seconds; less than the pool closes a connection for."""
ENDINGS: dict[str, Callable[[socket.socket], None]] = {"reset": reset, "close": socket.socket.close}


def answer(sock: socket.socket) -> None:
    sock.sendall(ANSWER)


class PerConnection:
    """Does with the nth request of each connection what `nth` says of it; answers where it says nothing."""

    def __init__(self, **nth: Callable[[socket.socket], None]) -> None:
        self._nth = {int(name.removeprefix("r")): behaviour for name, behaviour in nth.items()}
        self.requests: Counter[socket.socket] = Counter()

    def __call__(self, _: int, sock: socket.socket) -> None:
        self.requests[sock] += 1
        self._nth.get(self.requests[sock], answer)(sock)


def connections(pool: Pool[str]) -> list[Connection[str]]:
    return list(pool._connections.values())


def fill(driver: Driver, size: int) -> None:
    """Open that many connections, each of which carries an exchange."""
    driver.wanted = size
    driver.poll_until(lambda: driver.pool.idle == size)
    for number in range(size):
        driver.pool.send(f"filling {number}", REQUEST, driver.time)
    driver.poll_until(lambda: driver.pool.idle == size)
    driver.wanted = 0
    assert len(driver.owner.answers) == size


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_request_on_a_dead_connection_is_sent_once_more_on_a_fresh_one(tls: Tls, ending: str) -> None:
    with serving(PerConnection(r2=ENDINGS[ending]), tls) as server, driving(server, tls) as driver:
        driver.exchange("first")
        driver.exchange("second")
        assert driver.owner.retried == ["second"]
        assert driver.owner.answers["second"].status == 200
        assert not driver.owner.failures
        assert server.accepted == 2
        assert server.requests == 3


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_retry_fails_as_any_request_does(ending: str) -> None:
    def behave(number: int, sock: socket.socket) -> None:
        if number == 1:
            sock.sendall(ANSWER)
        else:
            ENDINGS[ending](sock)

    with Server(behave) as server, Driver(server.port) as driver:
        driver.exchange("first")
        driver.exchange("second")
        assert driver.owner.retried == ["second"]
        assert set(driver.owner.failures) == {"second"}
        assert server.requests == 3


@pytest.mark.parametrize("ending", ENDINGS)
def test_after_a_byte_of_a_response_there_is_no_retry(ending: str) -> None:
    def cut(sock: socket.socket) -> None:
        sock.sendall(ANSWER[:1])
        ENDINGS[ending](sock)

    with Server(PerConnection(r2=cut)) as server, Driver(server.port) as driver:
        driver.exchange("first")
        driver.exchange("second")
        assert set(driver.owner.failures) == {"second"}
        assert not driver.owner.retried


def test_a_fresh_connection_that_fails_counts() -> None:
    with Server(PerConnection(r1=reset)) as server, Driver(server.port) as driver:
        driver.exchange("first")
        assert set(driver.owner.failures) == {"first"}
        assert not driver.owner.retried


def test_one_that_has_waited_long_for_its_first_request_may_have_died_as_well() -> None:
    behaviours = iter([reset, answer])
    with Server(lambda _, sock: next(behaviours)(sock)) as server, Driver(server.port) as driver:
        driver.poll_until(lambda: driver.pool.idle == 1)
        driver.time += IDLE
        driver.exchange("first")
        assert driver.owner.retried == ["first"]
        assert driver.owner.answers["first"].status == 200


def test_a_retry_that_is_not_wanted_ends_there() -> None:
    with Server(PerConnection(r2=reset)) as server, Driver(server.port) as driver:
        driver.exchange("first")
        driver.owner.unwanted.add("second")
        driver.pool.send("second", REQUEST, driver.time)
        driver.poll_until(lambda: driver.owner.retried == ["second"])
        assert driver.pool.in_flight == 0
        driver.exchange("third")
        assert set(driver.owner.answers) == {"first", "third"}
        assert not driver.owner.failures
        assert server.requests == 3


def test_where_no_fresh_connection_can_be_had_the_exchange_fails_with_the_reason() -> None:
    with Server(PerConnection(r2=reset)) as server, Driver(server.port) as driver:
        driver.exchange("first")
        driver.pool.send("second", REQUEST, driver.time)
        with socket.create_server(("127.0.0.1", 0)) as closed:
            refusing = closed.getsockname()
        driver.pool.resolved([(socket.AF_INET, refusing)])
        driver.poll_until(lambda: "second" in driver.owner.failures)
        assert driver.owner.failures == {"second": "Connection refused"}
        assert not driver.owner.retried
        assert driver.pool.in_flight == 0


def test_an_exchange_that_waits_for_a_fresh_connection_is_in_flight_and_ends_with_the_pool() -> None:
    with Server(PerConnection(r2=reset)) as server, Driver(server.port) as driver:
        driver.exchange("first")
        driver.pool.resolved([])
        driver.pool.send("second", REQUEST, driver.time)
        driver.poll_until(lambda: driver.pool.open_connections == 0)
        assert driver.pool.in_flight == 1
        assert driver.pool.busy
        assert not driver.owner.failures
        driver.pool.close()
        assert driver.owner.failures == {"second": "closed"}


def test_all_may_die_at_the_same_moment(tls: Tls) -> None:
    """The events of the others are in the poll that finds the first dead; their descriptors are soon used anew."""
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
        sock.sendall(ANSWER)

    with serving(behave, tls) as server, driving(server, tls, size=20) as driver:
        fill(driver, 20)
        driver.time += IDLE
        for number in range(10):
            driver.pool.send(str(number), REQUEST, driver.time)
        driver.poll_until(lambda: len(driver.owner.answers) == 30)
        assert not driver.owner.failures
        assert sorted(driver.owner.retried) == [str(number) for number in range(10)]
        assert server.accepted == 30


def test_the_connection_that_became_idle_last_is_used_first() -> None:
    behaviour = PerConnection()
    with Server(behaviour) as server, Driver(server.port, size=5) as driver:
        fill(driver, 5)
        for number in range(10):
            driver.exchange(str(number))
        assert sorted(behaviour.requests.values()) == [1, 1, 1, 1, 11]


def test_one_that_had_been_idle_for_a_moment_only_condemns_no_others() -> None:
    with Server(PerConnection(r3=reset)) as server, Driver(server.port, size=10) as driver:
        fill(driver, 10)
        driver.time += IDLE
        driver.exchange("second")
        driver.exchange("third")
        assert driver.owner.retried == ["third"]
        assert driver.pool.open_connections == 10


def test_one_that_has_died_condemns_those_that_have_been_idle_as_long_and_no_others() -> None:
    requests: Counter[socket.socket] = Counter()

    def behave(number: int, sock: socket.socket) -> None:
        requests[sock] += 1
        if number > 13 and requests[sock] == 2:
            reset(sock)
        else:
            sock.sendall(ANSWER)

    with Server(behave) as server, Driver(server.port, size=10) as driver:
        fill(driver, 10)
        driver.time += IDLE
        for sent in (3, 4):
            for number in range(sent):
                driver.pool.send(f"{number} of {sent}", REQUEST, driver.time)
            driver.poll_until(lambda: driver.pool.in_flight == 0)
        assert driver.owner.retried == ["3 of 4"], "it took one that had been idle all the time"
        assert driver.pool.open_connections == 4, "three that were used a moment ago, and a fresh one"
        assert not driver.owner.failures


def test_connections_that_died_together_are_closed_with_the_first_that_is_used() -> None:
    behaviour = PerConnection(r2=reset)
    with Server(behaviour) as server, Driver(server.port, size=10) as driver:
        fill(driver, 10)
        driver.time += IDLE
        driver.exchange("next")
        assert driver.owner.retried == ["next"]
        assert driver.pool.open_connections == 1
        assert server.requests == 12


def test_what_stays_idle_is_closed_but_for_a_few_and_in_the_end_these() -> None:
    with Server(PerConnection()) as server, Driver(server.port, size=10) as driver:
        fill(driver, 10)
        driver.time += IDLE_SECONDS - 1
        driver.pool.sweep(driver.time)
        assert driver.pool.open_connections == 10
        driver.exchange("newest")
        driver.time += 2
        driver.pool.sweep(driver.time)
        assert driver.pool.open_connections == WARM_CONNECTIONS
        driver.time += LONGEST_IDLE_SECONDS - 3
        driver.pool.sweep(driver.time)
        assert driver.pool.open_connections == 1, "the one that was used later"
        driver.time += 4
        driver.pool.sweep(driver.time)
        assert driver.pool.open_connections == 0


def test_a_response_that_is_late_is_no_reason_to_send_the_request_again() -> None:
    with Server(PerConnection(r2=lambda _: None)) as server, Driver(server.port, size=3) as driver:
        fill(driver, 3)
        driver.time += IDLE
        driver.pool.send("late", REQUEST, driver.time)
        driver.poll_until(lambda: server.requests == 4)
        driver.time += RESPONSE_TIMEOUT_SECONDS + 1
        driver.pool.sweep(driver.time)
        assert driver.owner.failures == {"late": "timeout"}
        assert not driver.owner.retried
        assert driver.pool.open_connections == 0, "perhaps the others are as dead"
        assert server.requests == 4


@pytest.mark.skipif(not silence_can_be_played(), reason="takes a kernel that can drop a connection's packets")
def test_a_request_that_nobody_acknowledges_fails_before_its_response_is_late() -> None:
    with Server(PerConnection()) as server, Driver(server.port) as driver:
        driver.exchange("first")
        drop_what_arrives(server._sockets[0])
        driver.exchange("second")  # the pool is not swept: only the kernel can end it
        assert driver.owner.retried == ["second"]
        assert driver.owner.answers["second"].status == 200


def test_idle_connections_are_probed_and_requests_want_to_be_acknowledged() -> None:
    with Server(PerConnection()) as server, Driver(server.port) as driver:
        driver.exchange("first")
        (connection,) = connections(driver.pool)
        assert connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_USER_TIMEOUT"):
            option = getattr(socket, name, None)
            seconds = option and connection.sock.getsockopt(socket.IPPROTO_TCP, option)
            assert seconds is None or 0 < seconds / (1000 if name == "TCP_USER_TIMEOUT" else 1) <= 60


class ReadsFirst:
    """A TLS layer that cannot write on until it has read a record of the peer's, and then writes."""

    def __init__(self, connection: Connection[str], writes_before: int) -> None:
        self.waits = threading.Event()
        self.tries = 0
        self._sock = connection.sock
        self._writes_before = writes_before
        self._has_read = False
        connection.write = self.write

    def write(self, data: bytes) -> int:
        if self._writes_before:
            self._writes_before -= 1
            return self._sock.send(data[:10])
        self.tries += 1
        if not self._has_read:
            try:
                assert self._sock.recv(1) == b"!"
            except BlockingIOError:
                self.waits.set()
                raise ssl.SSLWantReadError from None
            self._has_read = True
        return self._sock.send(data)


@pytest.mark.parametrize("writes_before", [0, 1, 2])
def test_a_tls_layer_that_has_to_read_before_it_writes_on_cuts_no_request(writes_before: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        received: list[bytes] = []
        layers: list[ReadsFirst] = []

        def serve() -> None:
            sock, _ = listening.accept()
            with sock:
                while not layers:
                    threading.Event().wait(0.001)
                layers[0].waits.wait(10)
                threading.Event().wait(0.05)  # in which nothing is to be tried, for nothing has arrived
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
            assert driver.owner.answers["first"].status == 410
            assert b"".join(received) == REQUEST
            assert layers[0].tries == 2
        server.join()


@pytest.mark.parametrize("kept", [0, 10, 4096])
def test_of_a_body_no_more_is_kept_than_is_wanted(tls: Tls, kept: int) -> None:
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
        bodies = [answer.body for answer in driver.owner.answers.values()]
        assert bodies == [body[:kept], body[:kept], b"gone"[:kept], body[:kept]]
        assert {answer.status for answer in driver.owner.answers.values()} == {503}
        assert server.accepted == 1, "what is not kept is read all the same"
