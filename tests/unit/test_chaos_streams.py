"""How the chaos tests evaluate the deliveries they counted."""

import math

import pytest

from tests.chaos.endpoint_model import Client, Counts
from tests.chaos.streams import Latency, Received
from tests.chaos.stuck_clients import assert_missed_deliveries, posts_beyond_one_per_second, seconds_stuck


def counts(first_delivered_at: dict[str, float], *, times: int = 1) -> Counts:
    return Counts(
        delivered=dict.fromkeys(first_delivered_at, times), unacknowledged={}, first_delivered_at=first_delivered_at
    )


def test_percentiles_use_the_nearest_rank() -> None:
    assert Latency.from_delays(range(1, 101)) == (50, 99)
    assert Latency.from_delays([3.0]) == (3.0, 3.0)
    assert Latency.from_delays([]) == (math.inf, math.inf)


def test_missing_repeated_and_late() -> None:
    received = Received({"1": 10.0, "2": 11.0}, {"1": counts({"a": 10.5, "b": 12.0}, times=2)})
    assert received.missing("ab") == {("2", "a"), ("2", "b")}
    assert received.repeated() == 2
    assert received.unexpected("a") == {"b"}
    assert sorted(received.seconds("ab")) == [0.5, 2.0]
    assert received.last_delivery_at("ab") == math.inf
    assert received.last_delivery_at("ab", published_before=11.0) == 12.0


def test_a_message_is_overtaken_if_one_published_clearly_later_arrives_first() -> None:
    published_at = {"1": 0.0, "2": 1.0, "3": 5.0}
    in_order = Received(published_at, {"1": counts({"a": 6}), "2": counts({"a": 7}), "3": counts({"a": 8})})
    assert in_order.out_of_order("a", tolerance_seconds=0) == 0
    swapped = Received(published_at, {"1": counts({"a": 7}), "2": counts({"a": 6}), "3": counts({"a": 8})})
    assert swapped.out_of_order("a") == 0  # a standard queue guarantees no order within two seconds
    assert swapped.out_of_order("a", tolerance_seconds=0) == 1
    late = Received(published_at, {"1": counts({"a": 9}), "2": counts({"a": 7}), "3": counts({"a": 8})})
    assert late.out_of_order("a") == 1
    assert late.out_of_order("b") == 0


def test_how_long_a_client_was_stuck_and_how_often_it_was_posted_to() -> None:
    client = Client(throttled=12, first_throttled_at=100.0, last_throttled_at=110.0)
    assert seconds_stuck(client) == math.inf
    assert posts_beyond_one_per_second(client) == 2
    client.closed_at = 131.0
    assert seconds_stuck(client) == 31.0
    assert posts_beyond_one_per_second(Client()) == 0


PUBLISHED_AT = {"1": 0.0, "2": 10.0, "3": 38.0, "4": 50.0}
CLIENTS = {"stuck": Client(closed_at=40.0)}


@pytest.mark.parametrize("names", [["1", "2"], ["1", "2", "3"], ["1", "2", "3", "4"]])
def test_dead_letters_that_name_every_miss_until_the_close(names: list[str]) -> None:
    assert_missed_deliveries({(name, "stuck"): 1 for name in names}, PUBLISHED_AT, CLIENTS)


@pytest.mark.parametrize(
    "misses",
    [
        {("1", "stuck"): 1},
        {("1", "stuck"): 1, ("2", "stuck"): 2},
        {("1", "stuck"): 1, ("2", "stuck"): 1, ("2", "honest"): 1},
        {("1", "stuck"): 1, ("2", "stuck"): 1, ("another", "stuck"): 1},
    ],
    ids=["a miss is absent", "a miss is repeated", "a healthy client is named", "an unpublished message is named"],
)
def test_dead_letters_that_differ_from_the_misses(misses: dict[tuple[str, str], int]) -> None:
    with pytest.raises(AssertionError):
        assert_missed_deliveries(misses, PUBLISHED_AT, CLIENTS)
