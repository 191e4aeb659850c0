"""The rate controller and simulated accounts: it finds what is granted, shares it, and leaves slow clients alone."""

import random

import pytest

from worker.rate import INTERVAL_SECONDS, RateController


class Account:
    """A token bucket that all workers share, as API Gateway's throttle."""

    def __init__(self, granted: float, burst: float) -> None:
        self.granted, self.burst, self.tokens = granted, burst, burst

    def refill(self) -> None:
        self.tokens = min(self.burst, self.tokens + self.granted * INTERVAL_SECONDS)

    def passes(self) -> bool:
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class Load:
    """One worker that has endlessly many members to reach, a share of them slow."""

    def __init__(self, ceiling: float, slow_share: float, dice: random.Random) -> None:
        self.rate = RateController(ceiling)
        self.slow_share, self.dice = slow_share, dice
        self.retries: list[bool] = []
        self.passed = self.throttled = 0

    def posts(self) -> list[tuple[bool, bool]]:
        """(slow, tried before) of each post of one interval; what was throttled is tried again first."""
        count = int(self.rate.limit * INTERVAL_SECONDS)
        again, self.retries = self.retries[: count // 2], self.retries[count // 2 :][-1_000:]
        fresh = [(self.dice.random() < self.slow_share, False) for _ in range(count - len(again))]
        return [(slow, True) for slow in again] + fresh

    def hear(self, slow: bool, before: bool, passes: bool) -> None:
        if passes:
            self.passed += 1
            self.rate.passed(not before, before)
        else:
            self.throttled += 1
            self.rate.throttled(after_throttle=before)
            self.retries.append(slow)


def run(account: Account, loads: list[Load], intervals: int, now: float = 0.0) -> None:
    for interval in range(intervals):
        account.refill()
        posts = [(load, *post) for load in loads for post in load.posts()]
        loads[0].dice.shuffle(posts)
        for load, slow, before in posts:
            load.hear(slow, before, account.passes() and not slow)
        for load in loads:
            load.rate.adjust(now + interval * INTERVAL_SECONDS)


def test_it_finds_what_the_account_grants_and_stays_there() -> None:
    account, load = Account(granted=2_000, burst=1_000), Load(10_000, 0, random.Random(1))
    run(account, [load], 60)
    load.passed = load.throttled = 0
    run(account, [load], 400, now=1_000)
    assert load.passed >= 0.9 * 2_000 * 400 * INTERVAL_SECONDS
    assert load.throttled < 0.05 * (load.passed + load.throttled)


def test_two_workers_share_it() -> None:
    dice = random.Random(2)
    account, loads = Account(granted=2_000, burst=1_000), [Load(10_000, 0, dice), Load(10_000, 0, dice)]
    run(account, loads[:1], 100)
    run(account, loads, 200, now=1_000)
    for load in loads:
        load.passed = 0
    run(account, loads, 400, now=2_000)
    share = loads[0].passed / (loads[0].passed + loads[1].passed)
    assert 0.35 <= share <= 0.65


def test_slow_clients_do_not_bring_it_down() -> None:
    account, load = Account(granted=1e9, burst=1e9), Load(10_000, 0.05, random.Random(3))
    run(account, [load], 200)
    load.passed = 0
    run(account, [load], 40, now=1_000)
    assert load.rate.limit > 9_000
    assert not load.rate.account_throttles


def test_it_recovers_to_the_ceiling_and_never_exceeds_it() -> None:
    account, load = Account(granted=1_000, burst=500), Load(10_000, 0, random.Random(4))
    run(account, [load], 80)
    assert load.rate.limit < 2_000
    account.granted = account.burst = 1e9
    run(account, [load], 300, now=1_000)
    assert load.rate.limit == 10_000


@pytest.mark.parametrize("ceiling", [1.0, 5.0, 10_000.0])
def test_it_never_comes_down_to_nothing(ceiling: float) -> None:
    rate = RateController(ceiling)
    for interval in range(1_000):
        for _ in range(50):
            rate.throttled(after_throttle=False)
        rate.adjust(float(interval))
    assert rate.limit == min(10.0, ceiling)


def test_a_few_throttled_posts_are_no_account() -> None:
    rate = RateController(100)
    for _ in range(5):
        rate.throttled(after_throttle=False)
    assert not rate.account_throttles


def test_a_small_room_tells_an_exhausted_account_from_slow_clients() -> None:
    account, slow = RateController(100), RateController(100)
    for rate in (account, slow):
        for _ in range(4):
            rate.throttled(after_throttle=False)
        rate.passed(1)
    for nth in range(40):
        slow.throttled(after_throttle=True)
        if nth % 5:
            account.throttled(after_throttle=True)
        else:
            account.passed(0, 1)
        for rate in (account, slow):
            rate.adjust(float(nth))
    assert account.account_throttles
    assert not slow.account_throttles


def test_such_as_were_slow_before_say_nothing_of_the_account_while_they_are_slow_again() -> None:
    rate = RateController(10_000)
    for interval in range(20):
        for _ in range(100):
            rate.throttled(after_throttle=True)
        rate.adjust(float(interval))
    assert not rate.account_throttles
    assert rate.limit == 10_000
