from gatecast.rooms.backoff import Backoff


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.sleeps: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


def test_delays_double_up_to_the_maximum_and_are_jittered() -> None:
    clock = Clock()
    backoff = Backoff(
        max_attempts=6,
        first_delay_seconds=0.25,
        max_delay_seconds=2.0,
        clock=clock,
        sleep=clock.sleep,
        random=lambda: 0.5,
    )
    assert len(list(backoff.start())) == 6
    assert clock.sleeps == [0.125, 0.25, 0.5, 1.0, 1.0]


def test_no_wait_starts_that_would_pass_the_deadline() -> None:
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


def test_deadline_counts_from_start_and_one_attempt_is_always_made() -> None:
    clock = Clock()
    max_attempts = Backoff(deadline_seconds=1.0, clock=clock, sleep=clock.sleep).start()
    clock.now += 60
    assert len(list(max_attempts)) == 1


def test_a_caller_that_stops_early_does_not_wait() -> None:
    clock = Clock()
    max_attempts = Backoff(clock=clock, sleep=clock.sleep).start()
    next(max_attempts)
    assert clock.sleeps == []
