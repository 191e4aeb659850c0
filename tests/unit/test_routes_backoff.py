from routes.backoff import Backoff


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.sleeps: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


def test_delays_double_up_to_the_longest_and_are_scaled_by_the_random_number() -> None:
    clock = Clock()
    backoff = Backoff(
        tries=6,
        first_delay_seconds=0.25,
        longest_delay_seconds=2.0,
        clock=clock,
        sleep=clock.sleep,
        random=lambda: 0.5,
    )
    assert len(list(backoff.start())) == 6
    assert clock.sleeps == [0.125, 0.25, 0.5, 1.0, 1.0]


def test_no_wait_begins_that_would_pass_the_deadline() -> None:
    clock = Clock()
    backoff = Backoff(
        deadline_seconds=1.0,
        first_delay_seconds=0.3,
        clock=clock,
        sleep=clock.sleep,
        random=lambda: 1.0,
    )
    assert len(list(backoff.start())) == 3
    assert clock.sleeps == [0.3, 0.6]


def test_time_counts_from_the_start_and_one_try_is_always_granted() -> None:
    clock = Clock()
    tries = Backoff(deadline_seconds=1.0, clock=clock, sleep=clock.sleep).start()
    clock.now += 60
    assert len(list(tries)) == 1


def test_a_caller_that_stops_early_does_not_wait() -> None:
    clock = Clock()
    tries = Backoff(clock=clock, sleep=clock.sleep).start()
    next(tries)
    assert clock.sleeps == []
