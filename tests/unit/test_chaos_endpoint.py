"""The `@connections` double of the chaos tests: which connections are throttled, closed and gone."""

from gatecast.emulator.faults import THROTTLED, Rule
from tests.chaos.endpoint_model import GONE, THROTTLED_ACCOUNT, Account, Behaviour, EndpointModel
from tests.members import connection_ids

STUCK, HONEST = connection_ids(2)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def throttling(*ids: str, account: Account | None = None) -> Behaviour:
    return Behaviour(rules=(Rule(fault=THROTTLED, only=frozenset(ids)),), account=account)


def test_a_deleted_connection_is_gone_for_every_call() -> None:
    model = EndpointModel(Clock())
    assert model.delete(STUCK) is None
    assert model.post(STUCK, b"x") is GONE
    assert model.get(STUCK) is GONE
    assert model.delete(STUCK) is GONE
    assert model.post(HONEST, b"x") is None
    assert model.counts(b"x").delivered == {HONEST: 1}
    [(each, client)] = model.clients().items()
    assert (each, client.deletions, client.closed_at, client.posts_after_close) == (STUCK, 2, 100.0, 1)


def test_a_stuck_client_is_throttled_until_it_is_closed() -> None:
    clock = Clock()
    model = EndpointModel(clock)
    model.configure(throttling(STUCK))
    assert model.post(STUCK, b"x") == THROTTLED
    clock.now += 30
    assert model.post(STUCK, b"x") == THROTTLED
    assert model.delete(STUCK) is None  # a full buffer does not affect DELETE
    assert model.post(STUCK, b"x") is GONE
    client = model.clients()[STUCK]
    assert (client.throttled, client.first_throttled_at, client.last_throttled_at) == (2, 100.0, 130.0)


def test_unknown_ids_are_gone() -> None:
    model = EndpointModel(Clock())
    assert model.post("made-up", b"x") is GONE
    assert model.get("made-up") is GONE
    assert model.get(HONEST) is None
    assert not model.counts(b"x").delivered
    assert not model.clients()


def test_the_account_limit_counts_every_call_and_does_not_count_as_a_throttled_client() -> None:
    model = EndpointModel(Clock())
    model.configure(throttling(STUCK, account=Account(rate=1, burst=2)))
    assert model.get(HONEST) is None
    assert model.delete(HONEST) is None
    assert model.post(STUCK, b"x") is THROTTLED_ACCOUNT
    assert model.delete(STUCK) is THROTTLED_ACCOUNT
    assert model.clients()[STUCK].throttled == 0
    assert model.clients()[STUCK].closed_at is None


def test_the_time_of_each_first_delivery_is_recorded() -> None:
    clock = Clock()
    model = EndpointModel(clock)
    model.post(HONEST, b"a-1")
    clock.now += 1
    model.post(HONEST, b"a-1")
    model.post(HONEST, b"b-1")
    found = model.counts_by_data(b"a-")
    assert list(found) == ["a-1"]
    assert found["a-1"].delivered == {HONEST: 2}
    assert found["a-1"].first_delivered_at == {HONEST: 100.0}
