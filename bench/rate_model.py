"""A model of the rate controller and the token bucket against accounts with different quotas, and its results.

    python -m bench.rate_model                  all scenarios, about two minutes
    python -m bench.rate_model stalled fleet    the scenarios whose name contains one of these words

Time advances in ticks of 5 ms. The outcome of a post is decided when it is sent, and its response is received 10 ms
later. The account is a token bucket shared by all workers and other applications; if a tick requests more tokens than
it holds, chance decides which posts pass. A throttled post is first retried after 0 to 200 ms, later as the engine
does, and retries that are due go first. Connections that do not read throttle everything. Everything is seeded, so two
runs print the same.
"""

import heapq
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from worker.decisions.rate import RateController
from worker.decisions.token_bucket import TokenBucket

TICK_SECONDS: Final = 0.005
LATENCY_TICKS: Final = 2
MAX_IN_FLIGHT: Final = 256
REFERENCE_SECONDS: Final = 0.1
ENDLESS: Final = float("inf")
UNLIMITED: Final = 1e9


@dataclass(slots=True)
class Account:
    """A token bucket. `throttled_share` is the share of posts that are throttled regardless of the rate."""

    granted: float = UNLIMITED
    burst: float = UNLIMITED
    throttled_share: float = 0.0
    others: float = 0.0
    """Posts per second by competitors, at a constant rate."""
    tokens: float = field(init=False)
    _others_due: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.tokens = self.burst

    def decide(self, posts: int, rng: random.Random) -> list[bool]:
        """Decide for each post of one tick whether it passes."""
        self.tokens = min(self.burst, self.tokens + self.granted * TICK_SECONDS)
        self._others_due += self.others * TICK_SECONDS
        others = int(self._others_due)
        self._others_due -= others
        undecided, granted = posts + others, min(posts + others, int(self.tokens))
        self.tokens -= granted
        passes = []
        for _ in range(posts):
            passed = rng.random() * undecided < granted
            granted -= passed
            undecided -= 1
            passes.append(passed and rng.random() >= self.throttled_share)
        return passes


class Post(NamedTuple):
    reads: bool
    attempt: int
    reference: bool = False


@dataclass(slots=True)
class Load:
    """One worker. `demand` is in deliveries per second, `stalling` in connections per second that stop reading."""

    ceiling: float
    rng: random.Random
    demand: float = ENDLESS
    stalling: float = 0.0
    waiting: float = 0.0
    waiting_stalled: float = 0.0
    rate: RateController = field(init=False)
    passed: int = 0
    throttled: int = 0
    lowest: float = field(init=False)
    recognised_ticks: int = 0
    references: int = 0
    _token_bucket: TokenBucket = field(default_factory=TokenBucket)
    _retries: list[tuple[float, int, Post]] = field(default_factory=list)
    _sequence: int = 0
    _in_flight: deque[list[tuple[Post, bool]]] = field(init=False)
    _reference_at: float = 0.0

    def __post_init__(self) -> None:
        self.rate = RateController(self.ceiling)
        self.lowest = self.ceiling
        self._in_flight = deque([[] for _ in range(LATENCY_TICKS)])

    def reset_counts(self) -> None:
        self.passed = self.throttled = self.recognised_ticks = 0
        self.lowest = self.rate.limit

    @property
    def backlog(self) -> float:
        return self.waiting + len(self._retries)

    @property
    def throttled_share(self) -> float:
        return self.throttled / max(1, self.passed + self.throttled)

    def posts(self, now: float) -> list[Post]:
        self.waiting += self.demand * TICK_SECONDS
        self.waiting_stalled += self.stalling * TICK_SECONDS
        free = MAX_IN_FLIGHT - sum(map(len, self._in_flight))
        posts: list[Post] = []
        if self.rate.needs_reference and now >= self._reference_at:
            self._reference_at = now + REFERENCE_SECONDS
            self.references += 1
            posts.append(Post(reads=True, attempt=1, reference=True))
        permits = min(free, self._token_bucket.permits(self.rate.limit, now))
        while len(posts) < permits:
            if self._retries and self._retries[0][0] <= now:
                post = heapq.heappop(self._retries)[2]
                posts.append(post._replace(attempt=post.attempt + 1))
            elif self.waiting_stalled >= 1:
                self.waiting_stalled -= 1
                posts.append(Post(reads=False, attempt=1))
            elif self.waiting >= 1:
                self.waiting -= 1
                posts.append(Post(reads=True, attempt=1))
            else:
                break
        self._token_bucket.spend(len(posts))
        return posts

    def receive_responses(self, sent: list[tuple[Post, bool]], now: float) -> None:
        self._in_flight.append(sent)
        passed = [0, 0, 0]
        for post, passes in self._in_flight.popleft():
            if passes and post.reads:
                passed[min(post.attempt, 3) - 1] += 1
                continue
            self.throttled += post.reads
            if post.attempt <= 2:
                self.rate.throttled(retry=post.attempt == 2)
            if not post.reference:
                self._sequence += 1
                heapq.heappush(self._retries, (now + self._pause(post.attempt), self._sequence, post))
        self.passed += sum(passed)
        self.rate.passed(*passed)
        self.rate.adjust(now)
        self.lowest = min(self.lowest, self.rate.limit)
        self.recognised_ticks += self.rate.account_throttles

    def _pause(self, attempt: int) -> float:
        if attempt == 1:
            return 0.2 * self.rng.random()
        if self.rate.account_throttles:
            return self.rng.random() * min(8.0, 0.1 * 2.0**attempt)
        return (0.5 + self.rng.random() / 2) * min(8.0, 2.0 ** (attempt - 1))


@dataclass(slots=True)
class World:
    """An account, and the workers that share it."""

    account: Account
    loads: Sequence[Load]
    rng: random.Random
    now: float = 0.0
    ticks: int = 0

    def tick(self) -> None:
        posts = [load.posts(self.now) for load in self.loads]
        passes = iter(self.account.decide(sum(map(len, posts)), self.rng))
        for load, mine in zip(self.loads, posts, strict=True):
            load.receive_responses([(post, next(passes)) for post in mine], self.now)
        self.ticks += 1
        self.now = self.ticks * TICK_SECONDS

    def run(self, seconds: float, *, until: Callable[[], bool] = lambda: False) -> float:
        """Run for `seconds`, or until `until()` is true. Returns the seconds that passed."""
        began = self.now
        while self.now - began < seconds - TICK_SECONDS / 2 and not until():
            self.tick()
        return self.now - began

    def measure(self, seconds: float) -> None:
        for load in self.loads:
            load.reset_counts()
        self.run(seconds)


def world(
    account: Account, *, ceiling: float = 10_000, workers: int = 1, demand: float = ENDLESS, seed: int = 1
) -> World:
    rng = random.Random(seed)
    return World(account, [Load(ceiling, rng, demand) for _ in range(workers)], rng)


class Row(NamedTuple):
    scenario: str
    before: str
    """The result of the first version's controller in this model."""
    now: str


def stalled() -> Iterator[Row]:
    for name, at_once, per_second, healthy, before in (
        ("1 connection stalls", 1, 0.0, 200.0, "100%"),
        ("100 connections stall at once", 100, 0.0, 200.0, "100%"),
        ("100 receive ten posts per second each, as if never seen stalled", 0, 1000.0, 200.0, "0.5%"),
        ("1,000 stall at once, healthy rooms have 5 posts/s", 1000, 0.0, 5.0, "0.5%"),
        ("1,000 stall at once, no other traffic", 1000, 0.0, 0.0, "0.5%"),
        ("10 more stall per second, healthy rooms have 5 posts/s", 0, 10.0, 5.0, "0.5%"),
        ("100 more stall per second, healthy rooms have 5 posts/s", 0, 100.0, 5.0, "0.5%"),
    ):
        model = world(Account(), ceiling=2_000, demand=healthy)
        model.run(5)
        load = model.loads[0]
        load.waiting_stalled, load.stalling = at_once, per_second
        model.measure(30)
        yield Row(f"stalled: {name}", f"lowest limit {before}", f"lowest limit {load.lowest / 2_000:.0%}")


def start() -> Iterator[Row]:
    for burst, before in ((15, "51%"), (750, "39%"), (3_000, "39%"), (5_000, "35%")):
        model = world(Account(1_500, burst))
        load = model.loads[0]
        model.run(60, until=lambda load=load: load.passed + load.throttled >= 10_000)  # type: ignore[misc]
        yield Row(
            f"start: 1,500/s granted, burst {burst:,}",
            f"{before} of the first 10,000 posts throttled",
            f"{load.throttled_share:.1%} of the first 10,000 posts throttled",
        )
    model = world(Account())
    passed: deque[int] = deque([0] * 10, maxlen=10)
    load = model.loads[0]

    def at_ceiling() -> bool:
        full = load.passed - passed[0] >= 0.95 * load.ceiling * 10 * TICK_SECONDS
        passed.append(load.passed)
        return full

    seconds = model.run(60, until=at_ceiling)
    yield Row("start: unlimited quota", "ceiling after 0.05 s", f"ceiling after {seconds:.2f} s")


def throttling() -> Iterator[Row]:
    for share, before in ((0.5, "100%"), (0.9, "99.8%"), (0.95, "86%"), (0.98, "67%"), (1.0, "64%")):
        model = world(Account(throttled_share=share), demand=0)
        load = model.loads[0]
        load.waiting = 3_000.0
        first = model.run(10, until=lambda load=load: load.rate.account_throttles)  # type: ignore[misc]
        load.reset_counts()
        ticks = model.ticks
        model.run(120, until=lambda load=load: load.backlog < 1)  # type: ignore[misc]
        recognised = load.recognised_ticks / (model.ticks - ticks)
        yield Row(
            f"throttling {share:.0%}, a room of 3,000",
            f"recognised {before} of the time",
            f"after {first:.2f} s, then {recognised:.1%} of the time",
        )
    for share in (0.5, 0.9, 0.98, 1.0):
        model = world(Account(throttled_share=share), demand=200)
        load = model.loads[0]
        load.waiting_stalled, load.stalling = 200, 5
        model.run(10)
        ticks = model.ticks
        model.measure(120)
        yield Row(
            f"throttling {share:.0%}, 200 posts/s, 200 stalled and 5 more per second",
            "-",
            f"recognised {load.recognised_ticks / (model.ticks - ticks):.1%} of the time",
        )


def permanent() -> Iterator[Row]:
    for share, before in ((0.05, "164/s delivered, limit 52"), (0.1, "-"), (0.2, "32/s delivered, limit 10")):
        model = world(Account(throttled_share=share), demand=400)
        load = model.loads[0]
        model.run(30)
        model.measure(180)
        yield Row(
            f"permanent: {share:.0%} throttled regardless of the rate, 400 posts/s",
            before,
            f"{load.passed / 180:.0f}/s delivered, {load.backlog:.0f} waiting at the end",
        )


def competitor() -> Iterator[Row]:
    for share, before in ((0.98, "427"), (1.0, "270"), (1.05, "114"), (1.1, "68"), (1.25, "33")):
        model = world(Account(10_000, 5_000, others=share * 10_000))
        load = model.loads[0]
        model.run(60)
        model.measure(180)
        yield Row(
            f"competitor: constantly posts {share:.0%} of the quota",
            f"{before}/s granted",
            f"{load.passed / 180:.0f}/s granted, {load.throttled_share:.1%} throttled",
        )


def fleet() -> Iterator[Row]:
    for workers, quota, before in (
        (10, 10_000, "2.2%"),
        (20, 10_000, "2.6%"),
        (40, 10_000, "3.6%"),
        (1, 1_000, "2.4%"),
        (1, 200, "7.4%"),
        (1, 100, "13.6%"),
        (1, 50, "25.7%"),
        (10, 1_000, "11.4%"),
        (40, 1_000, "27.9%"),
    ):
        model = world(Account(quota, quota / 2), workers=workers)
        model.run(60)
        model.measure(120)
        passed, throttled = sum(load.passed for load in model.loads), sum(load.throttled for load in model.loads)
        shares = sorted(load.passed * workers / passed for load in model.loads)
        fair = f", shares {shares[0]:.2f} to {shares[-1]:.2f} of the fair share" if workers > 1 else ""
        yield Row(
            f"fleet: {workers} worker{'s' * (workers > 1)}, quota of {quota:,}/s",
            f"{before} throttled",
            f"{throttled / (passed + throttled):.1%} throttled, {passed / 120 / quota:.0%} of the quota used{fair}",
        )
    model = world(Account(2_000, 1_000), workers=2)
    alone, second = World(model.account, model.loads[:1], model.rng), model.loads[1]
    alone.run(25)
    model.ticks, model.now = alone.ticks, alone.now
    shares = []
    for _ in range(4):
        model.measure(25)
        shares.append(second.passed / sum(load.passed for load in model.loads))
    now = ", ".join(f"{share:.0%}" for share in shares)
    yield Row("fleet: a second worker starts; its share, per 25 s", "38%, 57%, 64%, 49%", now)


def recovery() -> Iterator[Row]:
    model = world(Account(1_000, 500))
    load = model.loads[0]
    model.run(30)
    model.account.granted = model.account.burst = UNLIMITED
    seconds = model.run(120, until=lambda: load.rate.limit >= 10_000)
    yield Row("recovery: from 1,000/s to an unlimited quota", "45 s to the ceiling", f"{seconds:.0f} s to the ceiling")
    model = world(Account(), demand=300)
    load = model.loads[0]
    model.run(10)
    model.account.throttled_share = 1.0
    model.run(120)
    model.account.throttled_share = 0.0
    seconds = model.run(120, until=lambda: load.rate.limit >= 10_000)
    name = "recovery: all posts were throttled for two minutes"
    yield Row(name, "50 s to the ceiling", f"{seconds:.0f} s to the ceiling")


SCENARIOS: Final = (stalled, start, throttling, permanent, competitor, fleet, recovery)


def main() -> None:
    words = sys.argv[1:]
    print("| scenario | before | now |\n| --- | --- | --- |")
    for scenario in SCENARIOS:
        if not words or any(word in scenario.__name__ for word in words):
            for row in scenario():
                print(f"| {row.scenario} | {row.before} | {row.now} |", flush=True)


if __name__ == "__main__":
    main()
