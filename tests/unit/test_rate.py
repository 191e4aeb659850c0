"""The rate controller: it finds and shares the account's rate, and clients that do not read do not lower it."""

import pytest

from bench.rate_model import ENDLESS, UNLIMITED, Account, Load, World, world
from worker.decisions.rate import INTERVAL_SECONDS, RateController
from worker.decisions.throttle_evidence import Counts


def recognised(model: World, seconds: float) -> float:
    """The share of these seconds in which the first worker considers the account to be throttling."""
    ticks = model.ticks
    model.measure(seconds)
    return model.loads[0].recognised_ticks / (model.ticks - ticks)


def throttled_share(model: World) -> float:
    throttled = sum(load.throttled for load in model.loads)
    return throttled / (throttled + sum(load.passed for load in model.loads))


def used_share(model: World, seconds: float) -> float:
    return sum(load.passed for load in model.loads) / (model.account.granted * seconds)


# Clients that do not read


@pytest.mark.parametrize(
    ("at_once", "per_second", "honest"),
    [
        (1, 0, 200),
        (100, 0, 200),
        (0, 1_000, 200),  # a hundred clients, each posted to ten times per second by an engine that does not track them
        (100, 0, 5),
        (1_000, 0, 5),
        (1_000, 0, 0),
        (0, 10, 5),
        (0, 10, 0),
        (0, 100, 5),
    ],
)
def test_stalled_connections_never_lower_the_limit(at_once: int, per_second: float, honest: float) -> None:
    model = world(Account(), ceiling=2_000, demand=honest)
    load = model.loads[0]
    model.run(5)
    load.waiting_stalled, load.stalling = at_once, per_second
    assert recognised(model, 20) == 0
    assert load.lowest == load.ceiling


def test_stalled_connections_do_not_hide_an_account_that_throttles() -> None:
    model = world(Account(500, 250), ceiling=2_000)
    load = model.loads[0]
    load.waiting_stalled = 200
    model.run(60)
    model.measure(60)
    assert load.throttled_share < 0.03
    assert used_share(model, 60) >= 0.9


def test_one_or_two_429s_are_no_evidence() -> None:
    rate = RateController(1_000)
    for nth in range(100):
        rate.passed(19 if nth < 5 else 0)
        if nth < 2:
            rate.throttled(retry=False)
            rate.passed(0, 1)
        rate.adjust(nth * INTERVAL_SECONDS)
    assert rate.limit == 1_000
    assert not rate.account_throttles
    assert not rate.cuts


def test_retries_that_pass_after_the_last_429_do_not_count_as_throttling() -> None:
    assert Counts(first_attempts=2, retries=90).account_share() == 0
    assert Counts(first_attempts=90, retries=10, rejected_first_attempts=10).account_share() == pytest.approx(1 / 11)
    assert Counts(first_attempts=90, retries=10, rejected_first_attempts=10).account_share(1.5) < 0.06


# An account that grants less than the ceiling


@pytest.mark.parametrize("burst", [15, 750, 3_000, 5_000])
def test_few_of_the_first_posts_are_throttled(burst: float) -> None:
    model = world(Account(1_500, burst))
    load = model.loads[0]
    model.run(30, until=lambda: load.passed + load.throttled >= 10_000)
    assert load.throttled_share < 0.1
    assert load.rate.limit == pytest.approx(1_500, rel=0.25)


def test_an_unused_quota_is_fully_used_within_about_a_second() -> None:
    model = world(Account())
    model.run(1.05)
    model.measure(0.2)
    assert model.loads[0].passed >= 0.95 * 10_000 * 0.2


@pytest.mark.parametrize(("granted", "max_throttled"), [(2_000, 0.01), (1_000, 0.01), (200, 0.025), (50, 0.06)])
def test_the_limit_converges_to_the_rate_of_the_account(granted: float, max_throttled: float) -> None:
    model = world(Account(granted, granted / 2))
    model.run(60)
    model.measure(60)
    assert throttled_share(model) < max_throttled
    assert used_share(model, 60) >= 0.9


def test_the_limit_follows_a_shrinking_quota_without_a_long_descent() -> None:
    model = world(Account(2_000, 10), demand=600)
    load = model.loads[0]
    model.run(60)
    model.account.granted = 300
    model.measure(10)
    assert load.lowest >= 150, "time without demand does not count as time without successful posts"
    assert load.passed >= 0.8 * 300 * 10


def test_many_workers_share_the_rate() -> None:
    model = world(Account(2_500, 1_250), workers=10)
    model.run(30)
    model.measure(30)
    assert throttled_share(model) < 0.035
    assert used_share(model, 30) >= 0.95
    fair = sum(load.passed for load in model.loads) / len(model.loads)
    assert all(0.5 * fair < load.passed < 2 * fair for load in model.loads)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_worker_that_starts_later_gets_its_share(seed: int) -> None:
    model = world(Account(2_000, 1_000), workers=2, seed=seed)
    first = World(model.account, model.loads[:1], model.rng)
    first.run(25)
    model.ticks, model.now = first.ticks, first.now
    model.run(50)
    model.measure(50)
    assert 0.35 <= model.loads[1].passed / sum(load.passed for load in model.loads) <= 0.65
    assert throttled_share(model) < 0.03


# An account that throttles at any rate


@pytest.mark.parametrize("share", [0.5, 0.9, 0.95, 0.98, 1.0])
def test_account_throttling_is_recognised_for_as_long_as_it_lasts(share: float) -> None:
    """One room of 3,000: once all first attempts are made, only reference posts give evidence."""
    model = world(Account(throttled_share=share), demand=0)
    load = model.loads[0]
    load.waiting = 3_000
    assert model.run(5, until=lambda: load.rate.account_throttles) < 1.2
    ticks = model.ticks
    load.reset_counts()
    model.run(90, until=lambda: load.backlog < 1)
    assert load.recognised_ticks >= 0.98 * (model.ticks - ticks)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.98, 1.0])
def test_account_throttling_is_recognised_among_stalled_connections(share: float) -> None:
    model = world(Account(throttled_share=share), demand=200)
    load = model.loads[0]
    load.waiting_stalled, load.stalling = 200, 5
    model.run(10)
    assert recognised(model, 90) > 0.9


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("share", [0.05, 0.2])
def test_429s_that_no_cut_avoids_do_not_slow_deliveries(share: float, seed: int) -> None:
    model = world(Account(throttled_share=share), demand=400, seed=seed)
    load = model.loads[0]
    model.run(100)
    model.measure(100)
    assert load.passed >= 0.97 * 400 * 100
    assert load.backlog < 1_000


def test_the_limit_recovers_when_unavoidable_429s_end() -> None:
    model = world(Account(throttled_share=0.2), demand=400)
    load = model.loads[0]
    model.run(60)
    assert load.rate.limit < load.ceiling
    model.account.throttled_share = 0
    assert model.run(60, until=lambda: load.rate.limit == load.ceiling) < 40


@pytest.mark.parametrize(("posts", "min_per_second"), [(0.98, 350), (1.0, 200), (1.05, 200), (1.25, 200)])
def test_a_share_remains_beside_a_competitor_that_never_slows_down(posts: float, min_per_second: float) -> None:
    model = world(Account(10_000, 5_000, others=posts * 10_000))
    model.run(60)
    model.measure(60)
    assert model.loads[0].passed / 60 >= min_per_second


def test_references_distinguish_total_throttling_from_stalled_connections() -> None:
    for throttled_share, throttles in ((0.0, False), (1.0, True)):
        model = world(Account(throttled_share=throttled_share), demand=0)
        load = model.loads[0]
        assert not load.rate.needs_reference
        load.waiting_stalled = 50
        model.run(3)
        assert load.references
        assert load.rate.account_throttles is throttles
        assert (load.rate.limit == load.ceiling) is not throttles


def test_references_stop_once_real_posts_give_enough_evidence() -> None:
    model = world(Account(), ceiling=2_000, demand=100)
    load = model.loads[0]
    model.run(5)
    load.stalling = 20
    model.run(20)
    assert not load.references


# Limits of the limit


def test_the_limit_recovers_to_the_ceiling_and_never_exceeds_it() -> None:
    model = world(Account(1_000, 500))
    load = model.loads[0]
    model.run(20)
    assert load.rate.limit < 2_000
    model.account.granted = model.account.burst = UNLIMITED
    assert model.run(60, until=lambda: load.rate.limit == load.ceiling) < 30
    model.measure(10)
    assert load.lowest == load.rate.limit == load.ceiling


def test_the_limit_recovers_by_itself_after_total_throttling() -> None:
    model = world(Account(), demand=300)
    load = model.loads[0]
    model.run(5)
    model.account.throttled_share = 1
    model.run(60)
    assert load.rate.limit < 100
    model.account.throttled_share = 0
    assert model.run(60, until=lambda: load.rate.limit == load.ceiling) < 40
    assert not load.rate.account_throttles


@pytest.mark.parametrize("ceiling", [1.0, 5.0, 50.0, 10_000.0])
def test_the_limit_never_falls_below_a_floor(ceiling: float) -> None:
    model = world(Account(throttled_share=1.0), ceiling=ceiling, demand=ENDLESS)
    model.run(30)
    floor = min(ceiling, max(10.0, 0.002 * ceiling))
    assert model.loads[0].lowest == pytest.approx(floor)


def test_the_limit_changes_at_most_once_per_interval() -> None:
    rate = RateController(10_000)
    rate.adjust(0.0)
    for _ in range(100):
        rate.throttled(retry=False)
        rate.passed(100, 100)
        rate.adjust(INTERVAL_SECONDS * 0.99)
    assert rate.limit == 10_000
    rate.adjust(INTERVAL_SECONDS)
    rate.throttled(retry=False)
    rate.adjust(INTERVAL_SECONDS * 2)
    assert rate.cuts <= 2


def test_the_limit_does_not_change_without_demand() -> None:
    model = World(Account(), [load := Load(10_000, world(Account()).rng, demand=0)], world(Account()).rng)
    model.run(10)
    assert load.rate.limit == 10_000
    assert not load.rate.needs_reference
