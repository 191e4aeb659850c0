"""What the chaos tests make of the deliveries that were counted."""

import math

import pytest

from tests.chaos.counting import Client, Counts
from tests.chaos.streams import Latency, Received
from tests.chaos.stuck import assert_misses, posts_beyond_one_per_second, seconds_stuck


def counts(first_at: dict[str, float], *, times: int = 1) -> Counts:
    return Counts(delivered=dict.fromkeys(first_at, times), unanswered={}, first_at=first_at)


def test_percentiles_are_by_the_nearest_rank() -> None:
    assert Latency.of(range(1, 101)) == (50, 99)
    assert Latency.of([3.0]) == (3.0, 3.0)
    assert Latency.of([]) == (math.inf, math.inf)


def test_missing_repeated_and_late() -> None:
    received = Received({"1": 10.0, "2": 11.0}, {"1": counts({"a": 10.5, "b": 12.0}, times=2)})
    assert received.missing("ab") == {("2", "a"), ("2", "b")}
    assert received.repeated() == 2
    assert received.strangers("a") == {"b"}
    assert sorted(received.seconds("ab")) == [0.5, 2.0]
    assert received.last_delivery_at("ab") == math.inf
    assert received.last_delivery_at("ab", published_before=11.0) == 12.0


def test_who_comes_after_what_was_published_clearly_later_is_overtaken() -> None:
    published_at = {"1": 0.0, "2": 1.0, "3": 5.0}
    in_order = Received(published_at, {"1": counts({"a": 6}), "2": counts({"a": 7}), "3": counts({"a": 8})})
    assert in_order.overtaken("a", same_moment_seconds=0) == 0
    swapped = Received(published_at, {"1": counts({"a": 7}), "2": counts({"a": 6}), "3": counts({"a": 8})})
    assert swapped.overtaken("a") == 0  # within two seconds a standard queue owes no order
    assert swapped.overtaken("a", same_moment_seconds=0) == 1
    late = Received(published_at, {"1": counts({"a": 9}), "2": counts({"a": 7}), "3": counts({"a": 8})})
    assert late.overtaken("a") == 1
    assert late.overtaken("b") == 0


def test_how_long_it_was_stuck_and_how_often_it_was_tried() -> None:
    client = Client(throttled=12, first_throttled_at=100.0, last_throttled_at=110.0)
    assert seconds_stuck(client) == math.inf
    assert posts_beyond_one_per_second(client) == 2
    client.closed_at = 131.0
    assert seconds_stuck(client) == 31.0
    assert posts_beyond_one_per_second(Client()) == 0


PUBLISHED_AT = {"1": 0.0, "2": 10.0, "3": 38.0, "4": 50.0}
CLIENTS = {"stuck": Client(closed_at=40.0)}


@pytest.mark.parametrize("names", [["1", "2"], ["1", "2", "3"], ["1", "2", "3", "4"]])
def test_dead_letters_that_name_what_was_missed_until_the_close(names: list[str]) -> None:
    assert_misses({(name, "stuck"): 1 for name in names}, PUBLISHED_AT, CLIENTS)


@pytest.mark.parametrize(
    "misses",
    [
        {("1", "stuck"): 1},
        {("1", "stuck"): 1, ("2", "stuck"): 2},
        {("1", "stuck"): 1, ("2", "stuck"): 1, ("2", "honest"): 1},
        {("1", "stuck"): 1, ("2", "stuck"): 1, ("another", "stuck"): 1},
    ],
    ids=["one is left out", "one is named twice", "it names a healthy one", "it names what nobody published"],
)
def test_dead_letters_that_do_not(misses: dict[tuple[str, str], int]) -> None:
    with pytest.raises(AssertionError):
        assert_misses(misses, PUBLISHED_AT, CLIENTS)
