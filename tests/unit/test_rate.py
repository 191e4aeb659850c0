"""The rate controller and simulated accounts: it finds what is granted, shares it, and leaves slow clients alone."""

import random
from collections import deque

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
    """One worker that has endlessly many members to reach, a share of them slow. Retries come 0.1 s later."""

    def __init__(self, ceiling: float, slow_share: float, dice: random.Random, *, start: float | None = None) -> None:
        self.rate = RateController(ceiling)
        self.rate.limit = start or ceiling
        self.slow_share, self.dice = slow_share, dice
        self.retries: deque[tuple[float, bool, int]] = deque()
        self.passed = self.throttled = 0
        self.credit = 0.0

    def posts(self, now: float) -> list[tuple[bool, int]]:
        """Whether it is slow, and how many posts it has had, of each post of one interval."""
        self.credit += self.rate.limit * INTERVAL_SECONDS
        count = int(self.credit)
        self.credit -= count
        due: list[tuple[bool, int]] = []
        while self.retries and self.retries[0][0] <= now and len(due) < count:
            _, slow, tries = self.retries.popleft()
            due.append((slow, tries))
        return due + [(self.dice.random() < self.slow_share, 0) for _ in range(count - len(due))]

    def hear(self, slow: bool, tries: int, now: float, *, passes: bool) -> None:
        if passes:
            self.passed += 1
            self.rate.passed(tries == 0, tries == 1, tries > 1)
            return
        self.throttled += 1
        if tries < 2:
            self.rate.throttled(retry=tries == 1)
        if not slow or tries < 3:
            self.retries.append((now + 0.1, slow, tries + 1))


def run(account: Account, loads: list[Load], seconds: float, now: float = 0.0) -> None:
    for interval in range(int(seconds / INTERVAL_SECONDS)):
        moment = now + interval * INTERVAL_SECONDS
        account.refill()
        posts = [(load, *post) for load in loads for post in load.posts(moment)]
        loads[0].dice.shuffle(posts)
        for load, slow, tries in posts:
            load.hear(slow, tries, moment, passes=not slow and account.passes())
        for load in loads:
            load.rate.adjust(moment)


def test_it_finds_what_the_account_grants_and_stays_there() -> None:
    account, load = Account(granted=2_000, burst=1_000), Load(10_000, 0, random.Random(1))
    run(account, [load], 15)
    load.passed = load.throttled = 0
    run(account, [load], 60, now=15)
    assert load.passed >= 0.9 * 2_000 * 60
    assert load.throttled < 0.05 * (load.passed + load.throttled)


def test_two_workers_share_it() -> None:
    dice = random.Random(2)
    account, loads = Account(granted=2_000, burst=1_000), [Load(10_000, 0, dice), Load(10_000, 0, dice)]
    run(account, loads[:1], 20)
    run(account, loads, 60, now=20)
    for load in loads:
        load.passed = 0
    run(account, loads, 60, now=80)
    share = loads[0].passed / (loads[0].passed + loads[1].passed)
    assert 0.35 <= share <= 0.65


@pytest.mark.parametrize("slow_share", [0.05, 0.5])
def test_slow_clients_do_not_bring_it_down(slow_share: float) -> None:
    account, load = Account(granted=1e9, burst=1e9), Load(10_000, slow_share, random.Random(3))
    run(account, [load], 20)
    assert load.rate.limit > 9_000
    assert not load.rate.cuts
    assert not load.rate.account_throttles


def test_it_recovers_to_the_ceiling_and_never_exceeds_it() -> None:
    account, load = Account(granted=1_000, burst=500), Load(10_000, 0, random.Random(4))
    run(account, [load], 20)
    assert load.rate.limit < 2_000
    account.granted = account.burst = 1e9
    run(account, [load], 60, now=20)
    assert load.rate.limit == 10_000


@pytest.mark.parametrize("ceiling", [1.0, 5.0, 10_000.0])
def test_it_never_comes_down_to_nothing(ceiling: float) -> None:
    rate = RateController(ceiling)
    for interval in range(1_000):
        for _ in range(50):
            rate.throttled(retry=False)
        rate.adjust(float(interval))
    assert 0 < rate.limit <= ceiling
    assert rate.limit >= min(1.0, ceiling)


def test_a_hundred_clients_that_stall_in_one_instant_do_not_move_it() -> None:
    rate = RateController(2_000)
    for interval in range(400):
        now = interval * INTERVAL_SECONDS
        rate.passed(5)
        if interval == 100:
            for _ in range(100):
                rate.throttled(retry=False)
        if interval == 104:
            for _ in range(100):
                rate.throttled(retry=True)
        rate.adjust(now)
        assert rate.limit == 2_000
    assert not rate.account_throttles


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_an_account_that_refuses_a_share_is_recognised_for_as_long_as_it_does(share: float) -> None:
    dice = random.Random(5)
    rate = RateController(1_000)
    told = []
    for interval in range(4_000):
        for _ in range(5):
            if dice.random() > share:
                rate.passed(1)
                continue
            rate.throttled(retry=False)
            if dice.random() > share:
                rate.passed(0, retries=1)
            else:
                rate.throttled(retry=True)
        rate.adjust(interval * INTERVAL_SECONDS)
        told.append(rate.account_throttles)
    assert sum(told[40:]) > 0.95 * len(told[40:])


def test_where_nothing_passes_it_asks_for_references_and_believes_them() -> None:
    account, slow = RateController(1_000), RateController(1_000)
    asked = 0
    for interval in range(400):
        for rate, reference_passes in ((account, False), (slow, True)):
            rate.throttled(retry=interval % 2 == 1)
            if rate.wants_reference:
                asked += 1
                if reference_passes:
                    rate.passed(1)
                else:
                    rate.throttled(retry=False)
            rate.adjust(interval * INTERVAL_SECONDS)
    assert asked
    assert account.account_throttles
    assert not slow.account_throttles
    assert slow.limit == 1_000
