"""The other pure decisions: back-off, pacing, turns, the pace of checkpoints, endpoint health."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.decisions.backoff import backoff_seconds, given_up
from worker.decisions.checkpoint import SNAPSHOT_AFTER, WINDOW, Checkpoint, Pace
from worker.decisions.round_robin import RoundRobin
from worker.decisions.token_bucket import TokenBucket


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_backoff_is_jittered_and_bounded(tries: int, jitter: float) -> None:
    assert 0 <= backoff_seconds(tries, jitter) <= 8
    assert backoff_seconds(tries, jitter, longest=1) <= 1
    assert backoff_seconds(tries, 0) == 0


def test_giving_up_takes_attempts_and_time() -> None:
    assert not given_up(7, 1_000)
    assert not given_up(1_000, 29.9)
    assert given_up(8, 30)


@given(st.floats(1, 1e6), st.lists(st.floats(0, 0.2), min_size=1, max_size=200))
def test_permits_never_exceed_the_limit_but_for_a_small_burst(limit: float, pauses: list[float]) -> None:
    pacer, now, spent = TokenBucket(), 0.0, 0
    pacer.permits(limit, now)
    for pause in pauses:
        now += pause
        permits = pacer.permits(limit, now)
        pacer.spend(permits)
        spent += permits
    assert spent <= limit * now + max(1.0, limit * 0.05) + 1


def spend_all(pacer: TokenBucket, limit: float, since: float, seconds: float) -> int:
    """How many posts start if there is always something to post, and ticks take a millisecond."""
    spent = 0
    for tick in range(round(seconds * 1_000)):
        permits = pacer.permits(limit, since + tick / 1_000)
        pacer.spend(permits)
        spent += permits
    return spent


def test_permits_add_up_over_short_ticks() -> None:
    pacer = TokenBucket()
    spend_all(pacer, 300, 0, 2)
    assert 299 <= spend_all(pacer, 300, 2, 1) <= 301


def test_a_rate_that_was_not_in_use_is_approached_by_doubling() -> None:
    pacer = TokenBucket()
    quarters = [spend_all(pacer, 16_000, quarter / 4, 0.25) for quarter in range(5)]
    assert quarters[0] < 500
    for earlier, later in itertools.pairwise(quarters[:4]):
        assert later == pytest.approx(2 * earlier, rel=0.1)
    assert quarters[4] == pytest.approx(4_000, rel=0.05)


def test_a_rate_that_is_in_use_is_remembered_for_a_while() -> None:
    pacer = TokenBucket()
    spend_all(pacer, 16_000, 0, 2)
    assert spend_all(pacer, 16_000, 3, 0.25) > 3_500
    assert spend_all(pacer, 16_000, 600, 0.25) < 1_000


def test_permits_that_nobody_uses_raise_no_rate() -> None:
    pacer = TokenBucket()
    for tick in range(10_000):
        pacer.permits(16_000, tick / 1_000)
        pacer.spend(tick % 10 == 0)
    assert spend_all(pacer, 16_000, 10, 0.25) < 500


def test_a_small_limit_is_there_at_once() -> None:
    assert 49 <= spend_all(TokenBucket(), 50, 0, 1) <= 51


class Things:
    def __init__(self, name: str, count: int, *, group: str = "", order: int = 0) -> None:
        self.group, self.order = group or name, (order, 0)
        self.things = [f"{name}{number}" for number in range(count)]
        self.in_round_robin = False

    def take(self) -> str | None:
        return self.things.pop(0) if self.things else None


def test_broadcasts_take_turns() -> None:
    round_robin: RoundRobin[str] = RoundRobin()
    a, b = Things("a", 3), Things("b", 1)
    round_robin.add(a)
    round_robin.add(b)
    round_robin.add(a)
    assert [round_robin.take() for _ in range(5)] == ["a0", "b0", "a1", "a2", None]
    assert not round_robin
    a.things = ["a3"]
    round_robin.add(a)
    assert round_robin.take() == "a3"


def test_groups_take_turns_and_within_a_group_the_earliest_goes_first() -> None:
    round_robin: RoundRobin[str] = RoundRobin()
    sources = [
        Things("late", 2, group="room", order=5),
        Things("early", 2, group="room", order=1),
        Things("other", 2, group="other", order=9),
    ]
    for source in sources:
        round_robin.add(source)
    assert [round_robin.take() for _ in range(7)] == ["early0", "other0", "early1", "other1", "late0", "late1", None]


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
