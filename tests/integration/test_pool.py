"""The connection pool against a server that closes, stalls, resets and answers garbage, at every byte position.

Whatever the server does: every exchange ends exactly once, nothing but the right answer counts as one, and a connection
that misbehaved is never used again.
"""

import socket
import ssl
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
import trustme

from tests.pool_driver import ANSWER, GONE, REQUEST, Driver, Server, Tls, driving, reset, serving
from worker.transport import pool as pool_module
from worker.transport.opening import OPENING_AT_ONCE


def refusing_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        return int(closed.getsockname()[1])


def test_one_connection_carries_many_exchanges(tls: Tls) -> None:
    with serving(lambda _, sock: sock.sendall(ANSWER), tls) as server, driving(server, tls) as driver:
        for number in range(20):
            driver.exchange(str(number))
        assert len(driver.owner.answers) == 20
        assert server.accepted == 1


@pytest.mark.parametrize("ending", ["close", "reset"])
@pytest.mark.parametrize("position", range(len(ANSWER)))
def test_the_peer_ends_at_every_byte_of_its_answer(position: int, ending: str) -> None:
    def behave(number: int, sock: socket.socket) -> None:
        if number > 1:
            sock.sendall(ANSWER)
            return
        sock.sendall(ANSWER[:position])
        (reset if ending == "reset" else socket.socket.close)(sock)

    with serving(behave, None) as server, driving(server, None) as driver:
        driver.exchange("cut")
        driver.exchange("next")
        assert set(driver.owner.failures) == {"cut"}
        assert driver.owner.answers["next"].status == 200


@pytest.mark.parametrize("garbage", [b"\0", b"\r\n\r\n", b"HTTP/1.1 "])
@pytest.mark.parametrize("position", range(len(GONE)))
def test_the_peer_answers_garbage_from_every_byte_on(position: int, garbage: bytes) -> None:
    sent = GONE[:position] + garbage

    def behave(number: int, sock: socket.socket) -> None:
        if number > 1:
            sock.sendall(ANSWER)
            return
        sock.sendall(sent)
        sock.close()

    with serving(behave, None) as server, driving(server, None) as driver:
        driver.exchange("garbage")
        driver.poll_until(lambda: driver.pool.open_connections == 0)
        driver.exchange("next")
        assert driver.owner.answers["next"].status == 200
        if "garbage" in driver.owner.answers:  # inside the body, or of a reason phrase, these bytes are none
            assert driver.owner.answers["garbage"].status == 410
        assert server.accepted == 2


@pytest.mark.parametrize("position", range(0, len(ANSWER), 5))
def test_the_peer_stalls_anywhere_and_the_sweep_ends_it(tls: Tls, position: int) -> None:
    def behave(number: int, sock: socket.socket) -> None:
        sock.sendall(ANSWER if number > 1 else ANSWER[:position])

    with serving(behave, tls) as server, driving(server, tls) as driver:
        driver.poll_until(lambda: driver.pool.idle > 0)
        driver.pool.send("stalled", REQUEST, driver.time)
        driver.poll_until(lambda: server.requests == 1)
        driver.pool.sweep(driver.time)
        assert not driver.owner.failures, "it still has time"
        driver.time += pool_module.RESPONSE_TIMEOUT_SECONDS + 1
        driver.pool.sweep(driver.time)
        assert driver.owner.failures == {"stalled": "timeout"}
        driver.exchange("next")
        assert driver.owner.answers["next"].status == 200
        assert server.accepted == 2


@pytest.mark.parametrize("cut", range(1, len(GONE)))
def test_an_answer_in_two_pieces(cut: int) -> None:
    def behave(_: int, sock: socket.socket) -> None:
        sock.sendall(GONE[:cut])
        time.sleep(0.002)
        sock.sendall(GONE[cut:])

    with serving(behave, None) as server, driving(server, None) as driver:
        for number in range(3):
            driver.exchange(str(number))
        assert [answer.body for answer in driver.owner.answers.values()] == [b"gone"] * 3
        assert server.accepted == 1


def test_a_connection_that_the_peer_closes_between_exchanges_is_replaced(tls: Tls) -> None:
    def behave(_: int, sock: socket.socket) -> None:
        sock.sendall(ANSWER)
        sock.close()

    with serving(behave, tls) as server, driving(server, tls) as driver:
        for number in range(5):
            driver.exchange(str(number))
            driver.poll_until(lambda: driver.pool.open_connections == 0)
        assert len(driver.owner.answers) == 5
        assert server.accepted == 5


def test_connection_close_is_obeyed(tls: Tls) -> None:
    closing = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    with serving(lambda _, sock: sock.sendall(closing), tls) as server, driving(server, tls) as driver:
        for number in range(3):
            driver.exchange(str(number))
        assert len(driver.owner.answers) == 3
        assert server.accepted == 3


def test_what_nobody_asked_for_costs_the_connection(tls: Tls) -> None:
    with serving(lambda _, sock: sock.sendall(ANSWER + ANSWER), tls) as server, driving(server, tls) as driver:
        driver.exchange("twice")
        driver.poll_until(lambda: driver.pool.open_connections == 0)
        assert driver.owner.failures or driver.owner.answers
        assert server.accepted == 1


def test_large_requests_and_answers_go_in_pieces(tls: Tls) -> None:
    body = b"x" * 3_000_000
    large = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with serving(lambda _, sock: sock.sendall(large), tls) as server, driving(server, tls) as driver:
        driver.exchange("large", b"POST / HTTP/1.1\r\n\r\n" + b"y" * 2_000_000 + b"hello")
        assert driver.owner.answers["large"].body == body
        driver.exchange("again")
        assert server.accepted == 1


def test_an_early_answer_ends_the_exchange_and_the_connection() -> None:
    listening = socket.create_server(("127.0.0.1", 0))

    def refuse() -> None:
        sock, _ = listening.accept()
        sock.recv(1000)
        sock.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        time.sleep(0.5)
        sock.close()

    threading.Thread(target=refuse, daemon=True).start()
    with Driver(listening.getsockname()[1]) as driver:
        driver.exchange("large", b"z" * 20_000_000)
        assert driver.owner.answers["large"].status == 413
        assert driver.pool.open_connections == 0
    listening.close()


def test_connections_are_opened_a_few_at_a_time_and_no_more_than_allowed(tls: Tls) -> None:
    with serving(lambda _, sock: sock.sendall(ANSWER), tls) as server, driving(server, tls, size=20) as driver:
        driver.wanted = 1_000
        driver.pool.want(1_000, 0.0)
        assert len(driver.pool._opening) == OPENING_AT_ONCE
        driver.poll_until(lambda: driver.pool.open_connections == 20)
        driver.pool.want(1_000, driver.time)
        assert not driver.pool._opening


def test_a_refused_connection_is_tried_again_with_back_off() -> None:
    with Driver(refusing_port()) as driver:
        driver.poll_until(lambda: driver.pool.problem is not None)
        assert driver.pool.problem == "cannot connect: Connection refused"
        failed = driver.pool._openings.failed_in_a_row
        driver.pool.want(1, driver.time)
        assert driver.pool._openings.failed_in_a_row == failed, "not at once"
        with Server(lambda _, sock: sock.sendall(ANSWER)) as server:
            driver.pool.resolved([(socket.AF_INET, ("127.0.0.1", server.port))])
            driver.exchange("later")
            assert driver.pool.problem is None


def test_while_no_address_answers_one_connection_at_a_time_is_tried_ever_more_seldom() -> None:
    with Driver(refusing_port(), size=100) as driver:
        pool = driver.pool
        pool.resolved([(socket.AF_INET, ("127.0.0.1", refusing_port())) for _ in range(2)])
        pool.want(100, 0.0)
        driver.wanted = 0
        driver.poll_until(lambda: not pool._opening)
        assert pool._openings.failed_in_a_row == 1, "one event, however many connections it hit"
        tried_at = []
        while driver.time < 120:
            driver.time += 0.05
            pool.want(100, driver.time)
            assert len(pool._opening) <= 1
            if pool._opening:
                tried_at.append(driver.time)
                driver.poll_until(lambda: not pool._opening)
            assert str(pool.problem).startswith("cannot connect: ")
        pauses = [later - earlier for earlier, later in pairwise(tried_at)]
        assert pauses[0] < 1
        assert all(2 < pause < 6 for pause in pauses[8:])
        assert len(pauses) > 20


def test_an_address_that_refuses_holds_up_no_other_and_is_tried_no_more_often() -> None:
    with Server(lambda _, sock: sock.sendall(ANSWER)) as server, Driver(server.port, size=128) as driver:
        driver.pool.resolved([(socket.AF_INET, ("127.0.0.1", port)) for port in (refusing_port(), server.port)])
        driver.wanted = 128
        driver.poll_until(lambda: driver.pool.open_connections == 128)
        assert driver.time < 2
        assert driver.pool._openings.attempts <= 2 * 128 + OPENING_AT_ONCE
        assert driver.pool.problem is None


@pytest.mark.parametrize("tls", ["tls"], indirect=True)
def test_an_address_that_never_answers_leaves_room_for_the_others_to_open(tls: Tls) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        serving(lambda _, sock: sock.sendall(ANSWER), tls) as server,
        driving(server, tls, size=32) as driver,
    ):
        ports = (silent.getsockname()[1], server.port)
        driver.pool.resolved([(socket.AF_INET, ("127.0.0.1", port)) for port in ports])
        driver.wanted = 32
        hanging = OPENING_AT_ONCE // 2
        driver.poll_until(lambda: driver.pool.open_connections == 32 - hanging)
        assert len(driver.pool._opening) == hanging


def test_a_wrong_certificate_is_refused_and_named(tmp_path: Path) -> None:
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trusted = trustme.CA()
    trusted.issue_cert("other.example.com").configure_cert(server_context)
    bundle = tmp_path / "ca.pem"
    trusted.cert_pem.write_to_path(str(bundle))
    client = ssl.create_default_context(cafile=str(bundle))
    with (
        Server(lambda _, sock: sock.sendall(ANSWER), server_context) as server,
        Driver(server.port, tls=client) as driver,
    ):
        driver.poll_until(lambda: driver.pool.problem is not None)
        assert "certificate" in str(driver.pool.problem)
        assert server.requests == 0


def test_addresses_are_taken_in_turn() -> None:
    with (
        Server(lambda _, sock: sock.sendall(ANSWER)) as one,
        Server(lambda _, sock: sock.sendall(ANSWER)) as other,
        Driver(one.port, size=6) as driver,
    ):
        driver.pool.resolved([(socket.AF_INET, ("127.0.0.1", server.port)) for server in (one, other)])
        driver.wanted = 6
        driver.poll_until(lambda: driver.pool.open_connections == 6)
        driver.poll_until(lambda: one.accepted + other.accepted == 6)
        assert one.accepted == other.accepted == 3


def test_old_connections_retire() -> None:
    with Server(lambda _, sock: sock.sendall(ANSWER)) as server, Driver(server.port) as driver:
        driver.exchange("first")
        driver.time += 3_600
        driver.pool.sweep(driver.time)
        assert driver.pool.open_connections == 0
        driver.exchange("second")
        assert server.accepted == 2
