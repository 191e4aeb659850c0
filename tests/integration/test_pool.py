"""The connection pool against a server that closes, stalls, resets and sends garbage, at every byte position.

In every case each exchange ends exactly once, only a correct response counts as one, and a connection that misbehaved
is never reused.
"""

import socket
import ssl
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
import trustme

from tests.pool_driver import GONE, REQUEST, RESPONSE, Driver, Server, Tls, driving, reset, serving
from worker.transport import pool as pool_module
from worker.transport.opening import MAX_OPENING


def refusing_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        return int(closed.getsockname()[1])


def test_one_connection_carries_many_exchanges(tls: Tls) -> None:
    with serving(lambda _, sock: sock.sendall(RESPONSE), tls) as server, driving(server, tls) as driver:
        for number in range(20):
            driver.exchange(str(number))
        assert len(driver.recorder.responses) == 20
        assert server.accepted == 1


@pytest.mark.parametrize("ending", ["close", "reset"])
@pytest.mark.parametrize("position", range(len(RESPONSE)))
def test_the_peer_closes_or_resets_at_every_byte_of_its_response(position: int, ending: str) -> None:
    def behave(number: int, sock: socket.socket) -> None:
        if number > 1:
            sock.sendall(RESPONSE)
            return
        sock.sendall(RESPONSE[:position])
        (reset if ending == "reset" else socket.socket.close)(sock)

    with serving(behave, None) as server, driving(server, None) as driver:
        driver.exchange("cut")
        driver.exchange("next")
        assert set(driver.recorder.failures) == {"cut"}
        assert driver.recorder.responses["next"].status == 200


@pytest.mark.parametrize("garbage", [b"\0", b"\r\n\r\n", b"HTTP/1.1 "])
@pytest.mark.parametrize("position", range(len(GONE)))
def test_the_peer_sends_garbage_from_every_byte_on(position: int, garbage: bytes) -> None:
    sent = GONE[:position] + garbage

    def behave(number: int, sock: socket.socket) -> None:
        if number > 1:
            sock.sendall(RESPONSE)
            return
        sock.sendall(sent)
        sock.close()

    with serving(behave, None) as server, driving(server, None) as driver:
        driver.exchange("garbage")
        driver.poll_until(lambda: driver.pool.open_connections == 0)
        driver.exchange("next")
        assert driver.recorder.responses["next"].status == 200
        if "garbage" in driver.recorder.responses:  # inside the body or the reason phrase these bytes are valid
            assert driver.recorder.responses["garbage"].status == 410
        assert server.accepted == 2


@pytest.mark.parametrize("position", range(0, len(RESPONSE), 5))
def test_the_peer_stalls_at_any_byte_and_the_sweep_times_it_out(tls: Tls, position: int) -> None:
    def behave(number: int, sock: socket.socket) -> None:
        sock.sendall(RESPONSE if number > 1 else RESPONSE[:position])

    with serving(behave, tls) as server, driving(server, tls) as driver:
        driver.poll_until(lambda: driver.pool.idle > 0)
        driver.pool.send("stalled", REQUEST, driver.time)
        driver.poll_until(lambda: server.requests == 1)
        driver.pool.sweep(driver.time)
        assert not driver.recorder.failures, "it has not timed out yet"
        driver.time += pool_module.RESPONSE_TIMEOUT_SECONDS + 1
        driver.pool.sweep(driver.time)
        assert driver.recorder.failures == {"stalled": "timeout"}
        driver.exchange("next")
        assert driver.recorder.responses["next"].status == 200
        assert server.accepted == 2


@pytest.mark.parametrize("cut", range(1, len(GONE)))
def test_a_response_in_two_segments(cut: int) -> None:
    def behave(_: int, sock: socket.socket) -> None:
        sock.sendall(GONE[:cut])
        time.sleep(0.002)
        sock.sendall(GONE[cut:])

    with serving(behave, None) as server, driving(server, None) as driver:
        for number in range(3):
            driver.exchange(str(number))
        assert [response.body for response in driver.recorder.responses.values()] == [b"gone"] * 3
        assert server.accepted == 1


def test_a_connection_that_the_peer_closes_between_exchanges_is_replaced(tls: Tls) -> None:
    def behave(_: int, sock: socket.socket) -> None:
        sock.sendall(RESPONSE)
        sock.close()

    with serving(behave, tls) as server, driving(server, tls) as driver:
        for number in range(5):
            driver.exchange(str(number))
            driver.poll_until(lambda: driver.pool.open_connections == 0)
        assert len(driver.recorder.responses) == 5
        assert server.accepted == 5


def test_connection_close_is_obeyed(tls: Tls) -> None:
    closing = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    with serving(lambda _, sock: sock.sendall(closing), tls) as server, driving(server, tls) as driver:
        for number in range(3):
            driver.exchange(str(number))
        assert len(driver.recorder.responses) == 3
        assert server.accepted == 3


def test_an_unsolicited_response_closes_the_connection(tls: Tls) -> None:
    with serving(lambda _, sock: sock.sendall(RESPONSE + RESPONSE), tls) as server, driving(server, tls) as driver:
        driver.exchange("twice")
        driver.poll_until(lambda: driver.pool.open_connections == 0)
        assert driver.recorder.failures or driver.recorder.responses
        assert server.accepted == 1


def test_large_requests_and_responses_are_transferred_in_pieces(tls: Tls) -> None:
    body = b"x" * 3_000_000
    large = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with serving(lambda _, sock: sock.sendall(large), tls) as server, driving(server, tls) as driver:
        driver.exchange("large", b"POST / HTTP/1.1\r\n\r\n" + b"y" * 2_000_000 + b"hello")
        assert driver.recorder.responses["large"].body == body
        driver.exchange("next")
        assert server.accepted == 1


def test_an_early_response_ends_the_exchange_and_the_connection() -> None:
    listening = socket.create_server(("127.0.0.1", 0))

    def reject() -> None:
        sock, _ = listening.accept()
        sock.recv(1000)
        sock.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        time.sleep(0.5)
        sock.close()

    threading.Thread(target=reject, daemon=True).start()
    with Driver(listening.getsockname()[1]) as driver:
        driver.exchange("large", b"z" * 20_000_000)
        assert driver.recorder.responses["large"].status == 413
        assert driver.pool.open_connections == 0
    listening.close()


def test_connections_are_opened_a_few_at_a_time_up_to_the_pool_size(tls: Tls) -> None:
    with serving(lambda _, sock: sock.sendall(RESPONSE), tls) as server, driving(server, tls, size=20) as driver:
        driver.wanted = 1_000
        driver.pool.request_connections(1_000, 0.0)
        assert len(driver.pool._opening) == MAX_OPENING
        driver.poll_until(lambda: driver.pool.open_connections == 20)
        driver.pool.request_connections(1_000, driver.time)
        assert not driver.pool._opening


def test_a_refused_connection_is_retried_with_backoff() -> None:
    with Driver(refusing_port()) as driver:
        driver.poll_until(lambda: driver.pool.problem is not None)
        assert driver.pool.problem == "cannot connect: Connection refused"
        failed = driver.pool._openings.failed_in_a_row
        driver.pool.request_connections(1, driver.time)
        assert driver.pool._openings.failed_in_a_row == failed, "not retried immediately"
        with Server(lambda _, sock: sock.sendall(RESPONSE)) as server:
            driver.pool.resolved([(socket.AF_INET, ("127.0.0.1", server.port))])
            driver.exchange("later")
            assert driver.pool.problem is None


def test_while_all_addresses_refuse_one_connection_at_a_time_is_attempted_with_growing_backoff() -> None:
    with Driver(refusing_port(), size=100) as driver:
        pool = driver.pool
        pool.resolved([(socket.AF_INET, ("127.0.0.1", refusing_port())) for _ in range(2)])
        pool.request_connections(100, 0.0)
        driver.wanted = 0
        driver.poll_until(lambda: not pool._opening)
        assert pool._openings.failed_in_a_row == 1, "counted once, regardless of the number of connections"
        attempted_at = []
        while driver.time < 120:
            driver.time += 0.05
            pool.request_connections(100, driver.time)
            assert len(pool._opening) <= 1
            if pool._opening:
                attempted_at.append(driver.time)
                driver.poll_until(lambda: not pool._opening)
            assert str(pool.problem).startswith("cannot connect: ")
        pauses = [later - earlier for earlier, later in pairwise(attempted_at)]
        assert pauses[0] < 1
        assert all(2 < pause < 6 for pause in pauses[8:])
        assert len(pauses) > 20


def test_an_address_that_refuses_does_not_delay_others_and_is_not_attempted_more_often() -> None:
    with Server(lambda _, sock: sock.sendall(RESPONSE)) as server, Driver(server.port, size=128) as driver:
        driver.pool.resolved([(socket.AF_INET, ("127.0.0.1", port)) for port in (refusing_port(), server.port)])
        driver.wanted = 128
        driver.poll_until(lambda: driver.pool.open_connections == 128)
        assert driver.time < 2
        assert driver.pool._openings.attempts <= 2 * 128 + MAX_OPENING
        assert driver.pool.problem is None


@pytest.mark.parametrize("tls", ["tls"], indirect=True)
def test_an_address_that_never_responds_leaves_others_room_to_open(tls: Tls) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        serving(lambda _, sock: sock.sendall(RESPONSE), tls) as server,
        driving(server, tls, size=32) as driver,
    ):
        ports = (silent.getsockname()[1], server.port)
        driver.pool.resolved([(socket.AF_INET, ("127.0.0.1", port)) for port in ports])
        driver.wanted = 32
        hanging = MAX_OPENING // 2
        driver.poll_until(lambda: driver.pool.open_connections == 32 - hanging)
        assert len(driver.pool._opening) == hanging


def test_an_invalid_certificate_is_rejected_and_reported(tmp_path: Path) -> None:
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trusted = trustme.CA()
    trusted.issue_cert("other.example.com").configure_cert(server_context)
    bundle = tmp_path / "ca.pem"
    trusted.cert_pem.write_to_path(str(bundle))
    client = ssl.create_default_context(cafile=str(bundle))
    with (
        Server(lambda _, sock: sock.sendall(RESPONSE), server_context) as server,
        Driver(server.port, tls=client) as driver,
    ):
        driver.poll_until(lambda: driver.pool.problem is not None)
        assert "certificate" in str(driver.pool.problem)
        assert server.requests == 0


def test_addresses_are_used_round_robin() -> None:
    with (
        Server(lambda _, sock: sock.sendall(RESPONSE)) as one,
        Server(lambda _, sock: sock.sendall(RESPONSE)) as other,
        Driver(one.port, size=6) as driver,
    ):
        driver.pool.resolved([(socket.AF_INET, ("127.0.0.1", server.port)) for server in (one, other)])
        driver.wanted = 6
        driver.poll_until(lambda: driver.pool.open_connections == 6)
        driver.poll_until(lambda: one.accepted + other.accepted == 6)
        assert one.accepted == other.accepted == 3


def test_old_connections_are_retired() -> None:
    with Server(lambda _, sock: sock.sendall(RESPONSE)) as server, Driver(server.port) as driver:
        driver.exchange("first")
        driver.time += 3_600
        driver.pool.sweep(driver.time)
        assert driver.pool.open_connections == 0
        driver.exchange("second")
        assert server.accepted == 2
