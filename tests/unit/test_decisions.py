"""The other pure decisions: back-off, pacing, turns, the pace of checkpoints, endpoint health."""

from hypothesis import given
from hypothesis import strategies as st

from worker.checkpoint import SNAPSHOT_AFTER, WINDOW, Checkpoint, Pace
from worker.delivery.pacing import Pacer
from worker.fairness import Rotation
from worker.retry import backoff_seconds, given_up


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_backoff_is_jittered_and_bounded(tries: int, dice: float) -> None:
    assert 0 <= backoff_seconds(tries, dice) <= 8
    assert backoff_seconds(tries, dice, longest=1) <= 1
    assert backoff_seconds(tries, 0) == 0


def test_giving_up_takes_attempts_and_time() -> None:
    assert not given_up(7, 1_000)
    assert not given_up(1_000, 29.9)
    assert given_up(8, 30)


@given(st.floats(1, 1e6), st.lists(st.floats(0, 0.2), min_size=1, max_size=200))
def test_permits_never_exceed_the_limit_but_for_a_small_burst(limit: float, pauses: list[float]) -> None:
    pacer, now, spent = Pacer(), 0.0, 0
    pacer.permits(limit, now)
    for pause in pauses:
        now += pause
        permits = pacer.permits(limit, now)
        pacer.spend(permits)
        spent += permits
    assert spent <= limit * now + max(1.0, limit * 0.05) + 1


def permits_over(pacer: Pacer, limit: float, start: int, seconds: int) -> int:
    """What is spent where everything is used, in ticks of a millisecond."""
    spent = 0
    for tick in range(start * 1_000, (start + seconds) * 1_000):
        permits = pacer.permits(limit, tick / 1_000)
        pacer.spend(permits)
        spent += permits
    return spent


def test_permits_add_up_over_short_ticks() -> None:
    pacer = Pacer()
    permits_over(pacer, 300, 0, 2)
    assert 299 <= permits_over(pacer, 300, 2, 1) <= 301


def test_a_rate_that_has_not_been_in_use_is_reached_within_a_second() -> None:
    pacer = Pacer()
    assert 1_000 <= permits_over(pacer, 10_000, 0, 1) <= 8_000
    assert 9_900 <= permits_over(pacer, 10_000, 1, 1) <= 10_100
    for second in range(2, 600):
        pacer.permits(10_000, float(second))
    assert permits_over(pacer, 10_000, 600, 1) <= 8_500


class Things:
    def __init__(self, name: str, count: int, *, group: str = "", order: int = 0) -> None:
        self.group, self.order = group or name, (order, 0)
        self.things = [f"{name}{number}" for number in range(count)]
        self.in_rotation = False

    def take(self) -> str | None:
        return self.things.pop(0) if self.things else None


def test_broadcasts_take_turns() -> None:
    rotation: Rotation[str] = Rotation()
    a, b = Things("a", 3), Things("b", 1)
    rotation.add(a)
    rotation.add(b)
    rotation.add(a)
    assert [rotation.take() for _ in range(5)] == ["a0", "b0", "a1", "a2", None]
    assert not rotation
    a.things = ["a3"]
    rotation.add(a)
    assert rotation.take() == "a3"


def test_groups_take_turns_and_within_a_group_the_earliest_goes_first() -> None:
    rotation: Rotation[str] = Rotation()
    sources = [
        Things("late", 2, group="room", order=5),
        Things("early", 2, group="room", order=1),
        Things("other", 2, group="other", order=9),
    ]
    for source in sources:
        rotation.add(source)
    assert [rotation.take() for _ in range(7)] == ["early0", "other0", "early1", "other1", "late0", "late1", None]


def test_checkpoints_survive_the_table() -> None:
    checkpoint = Checkpoint("m=", (("a=", 5), ("é/", None)))
    assert Checkpoint.decode(checkpoint.cursor, checkpoint.encode_pending()) == checkpoint


def settle(pace: Pace, deliveries: int) -> None:
    pace.since_snapshot += deliveries
    pace.since_written += deliveries


def test_checkpoints_are_due_after_a_number_of_deliveries_and_one_is_written_at_a_time() -> None:
    pace = Pace(0.0)
    settle(pace, SNAPSHOT_AFTER - 1)
    assert not pace.due(0.0)
    settle(pace, 1)
    assert pace.due(0.0)
    pace.snapshot(0.0)
    assert not pace.due(100.0)
    assert pace.since_written == SNAPSHOT_AFTER
    pace.written()
    assert pace.since_written == 0


def test_what_is_settled_during_a_write_may_be_repeated() -> None:
    pace = Pace(0.0)
    settle(pace, SNAPSHOT_AFTER)
    pace.snapshot(0.1)
    settle(pace, WINDOW - SNAPSHOT_AFTER)
    assert pace.since_written == WINDOW
    pace.written()
    assert pace.since_written == WINDOW - SNAPSHOT_AFTER


def test_a_slow_broadcast_is_checkpointed_every_second_if_it_moves() -> None:
    pace = Pace(0.0)
    assert not pace.due(5.0)
    settle(pace, 1)
    assert not pace.due(0.9)
    assert pace.due(1.0)
