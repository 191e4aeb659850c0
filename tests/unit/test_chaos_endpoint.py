"""The stand-in for `@connections` of the chaos tests: who is refused, closed and gone."""

from local.gateway.faults import THROTTLED, Rule
from tests.chaos.counting import GONE, THROTTLED_ACCOUNT, Account, Behaviour, Counting
from tests.chaos.rooms import connection_ids

STUCK, HONEST = connection_ids(2)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def throttling(*ids: str, account: Account | None = None) -> Behaviour:
    return Behaviour(rules=(Rule(fault=THROTTLED, only=frozenset(ids)),), account=account)


def test_a_deleted_connection_is_gone_for_every_call() -> None:
    counting = Counting(Clock())
    assert counting.delete(STUCK) is None
    assert counting.post(STUCK, b"x") is GONE
    assert counting.get(STUCK) is GONE
    assert counting.delete(STUCK) is GONE
    assert counting.post(HONEST, b"x") is None
    assert counting.counts(b"x").delivered == {HONEST: 1}
    [(each, client)] = counting.clients().items()
    assert (each, client.deletions, client.closed_at, client.posts_after_close) == (STUCK, 2, 100.0, 1)


def test_a_stuck_client_is_refused_until_it_is_closed() -> None:
    clock = Clock()
    counting = Counting(clock)
    counting.behave(throttling(STUCK))
    assert counting.post(STUCK, b"x") == THROTTLED
    clock.now += 30
    assert counting.post(STUCK, b"x") == THROTTLED
    assert counting.delete(STUCK) is None  # its buffer says nothing of a DELETE
    assert counting.post(STUCK, b"x") is GONE
    client = counting.clients()[STUCK]
    assert (client.throttled, client.first_throttled_at, client.last_throttled_at) == (2, 100.0, 130.0)


def test_ids_that_nobody_has_made_are_gone() -> None:
    counting = Counting(Clock())
    assert counting.post("made-up", b"x") is GONE
    assert counting.get("made-up") is GONE
    assert counting.get(HONEST) is None
    assert not counting.counts(b"x").delivered
    assert not counting.clients()


def test_the_account_counts_every_call_and_its_refusals_say_nothing_of_a_client() -> None:
    counting = Counting(Clock())
    counting.behave(throttling(STUCK, account=Account(rate=1, burst=2)))
    assert counting.get(HONEST) is None
    assert counting.delete(HONEST) is None
    assert counting.post(STUCK, b"x") is THROTTLED_ACCOUNT
    assert counting.delete(STUCK) is THROTTLED_ACCOUNT
    assert counting.clients()[STUCK].throttled == 0
    assert counting.clients()[STUCK].closed_at is None


def test_the_first_delivery_of_each_is_remembered() -> None:
    clock = Clock()
    counting = Counting(clock)
    counting.post(HONEST, b"a-1")
    clock.now += 1
    counting.post(HONEST, b"a-1")
    counting.post(HONEST, b"b-1")
    found = counting.counts_by_data(b"a-")
    assert list(found) == ["a-1"]
    assert found["a-1"].delivered == {HONEST: 2}
    assert found["a-1"].first_at == {HONEST: 100.0}
