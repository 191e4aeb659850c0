"""When a connection that returns 429 is given up: attempts, time, and evidence that rules chance out."""

import random
from typing import cast

import pytest

from worker.decisions.backoff import ATTEMPTS_BEFORE_GIVING_UP, SECONDS_BEFORE_GIVING_UP
from worker.decisions.stall import (
    CLOSINGS_AT_ONCE,
    CLOSINGS_PER_SECOND,
    DECISIVE_EVIDENCE,
    ClosingBudget,
    References,
    Refused,
    StalledConnection,
    StalledConnections,
)
from worker.delivery.fanout import Delivery


def probe(record: StalledConnection, references: References, passed: int, throttled: int) -> None:
    """One rejected probe, and the references up to the next one."""
    record.post(None)  # type: ignore[arg-type]
    record.probe_refused()
    references.passed += passed
    references.throttled += throttled
    record.judge()


def test_without_references_nothing_counts() -> None:
    references = References()
    record = StalledConnection("c", 0.0, references)
    for _ in range(1_000):
        probe(record, references, 0, 0)
    assert record.evidence == 0
    assert not record.does_not_read(1e9)


def test_it_takes_attempts_time_and_evidence() -> None:
    references = References()
    record = StalledConnection("c", 100.0, references)
    while record.refused < ATTEMPTS_BEFORE_GIVING_UP - 1:
        probe(record, references, 10_000, 0)
    assert record.evidence > DECISIVE_EVIDENCE
    assert not record.does_not_read(1_000.0)
    probe(record, references, 10_000, 0)
    assert not record.does_not_read(100.0 + SECONDS_BEFORE_GIVING_UP - 0.1)
    assert record.does_not_read(100.0 + SECONDS_BEFORE_GIVING_UP)


def test_eight_probes_beside_a_busy_room_are_enough_and_beside_made_up_posts_soon() -> None:
    for per_probe, most in ((600, 8), (60, 16)):
        references = References()
        record = StalledConnection("c", 0.0, references)
        while not record.does_not_read(60.0):
            probe(record, references, per_probe, 0)
        assert record.refused <= most


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_chance_never_gives_a_connection_up(share: float) -> None:
    """What an account refuses, whatever the share, tells of the account, over a million probes of connections."""
    rng = random.Random(7)
    references = References()
    highest = 0.0
    record = StalledConnection("c", 0.0, references)
    for _ in range(100_000):
        throttled = sum(rng.random() < share for _ in range(10))
        record.post(None)  # type: ignore[arg-type]
        references.throttled += throttled
        references.passed += 10 - throttled
        if rng.random() < share:
            record.probe_refused()
            record.judge()
        else:
            record.probe_passed(0.0)
        highest = max(highest, record.evidence)
    assert highest < DECISIVE_EVIDENCE / 2


def test_probes_come_at_most_once_per_second_and_ever_more_rarely() -> None:
    references = References()
    record = StalledConnection("c", 0.0, references)
    pauses = []
    for _ in range(20):
        probe(record, references, 0, 0)
        pauses.append(record.retry_seconds(0.5, account_throttles=False))
    assert min(pauses) >= 1
    assert pauses == sorted(pauses)
    assert pauses[-1] > 5


def test_the_first_retry_comes_at_once_and_an_account_that_throttles_is_retried_with_backoff() -> None:
    record = StalledConnection("c", 0.0, References())
    assert record.retry_seconds(0.99, account_throttles=False) <= 0.2
    probe(record, record.references, 0, 0)
    assert record.retry_seconds(0.99, account_throttles=True) <= 0.4


def test_what_a_remainder_carries_still_takes_a_probe_here() -> None:
    references = References()
    record = StalledConnection("c", 1_000.0, references)
    record.resume(Refused(99, 10.0, 1e9))
    assert not record.does_not_read(1_000.0)
    probe(record, references, 1_000, 0)
    assert not record.does_not_read(1_000.0), "the last word takes two"
    probe(record, references, 1_000, 0)
    assert record.does_not_read(1_000.0)


class Waiting:
    """As much of a delivery as a line needs."""

    def __init__(self, order: int = 0) -> None:
        self.stalled: StalledConnection | None = None
        self.fanout = self
        self.order = (order, 0)


def test_what_waits_goes_on_elsewhere_only_after_probes_in_vain_since_it_lined_up() -> None:
    references = References()
    record = StalledConnection("c", 0.0, references)
    first, second = cast(Delivery, Waiting(1)), cast(Delivery, Waiting(2))
    record.line_up(first, 0.0)
    probe(record, references, 1_000, 0)
    assert not record.lets_leave(first)
    probe(record, references, 1_000, 0)
    assert record.lets_leave(first)
    record.line_up(second, 0.0)
    assert not record.lets_leave(second)
    probe(record, references, 1_000, 0)
    assert record.lets_leave(second)
    record.leave(second)
    assert not record.lets_leave(second)
    record.post(first)
    record.leave(first)
    record.probe_refused()
    record.line_up(first, 0.0, again=True)
    assert record.lets_leave(first)


def test_a_line_is_in_the_order_of_broadcasts_whoever_comes_first() -> None:
    record = StalledConnection("c", 0.0, References())
    waiting = [cast(Delivery, Waiting(order)) for order in (5, 1, 3)]
    for each in waiting:
        record.line_up(each, 0.0)
    assert list(record.line) == [waiting[1], waiting[2], waiting[0]]
    assert record.first() is waiting[1]


def test_a_client_that_reads_again_is_followed_by_ever_more() -> None:
    record = StalledConnection("c", 0.0, References())
    for order in range(100):
        record.line_up(cast(Delivery, Waiting(order)), 0.0)
    followers = []
    for _ in range(5):
        record.probe_passed(1.0)
        followers.append(len(record.followers()))
    assert followers == [0, 1, 3, 7, 15]
    record.follower_refused()
    assert not record.followers()


def test_a_client_that_reads_now_and_then_is_given_up_only_when_it_is_far_behind() -> None:
    references = References()
    record = StalledConnection("c", 0.0, references)
    for second in range(0, 90, 3):
        probe(record, references, 1_000, 0)
        probe(record, references, 1_000, 0)
        assert not record.does_not_read(float(second))
        record.probe_passed(float(second))
    probe(record, references, 1_000, 0)
    assert record.does_not_read(121.0)


def test_records_without_a_line_are_forgotten_after_a_while_and_never_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.decisions.stall.MAX_IDLE", 10)
    records = StalledConnections(References())
    for number in range(25):
        records.rest(records.add(f"c{number}", 0.0), 0.0)
    assert len(records) == 10
    assert not records.undecided
    records.rest(records.add("late", 100.0), 100.0)
    assert set(records.by_id) == {"late"}


def test_a_record_is_due_once() -> None:
    records = StalledConnections(References())
    record = records.add("c", 0.0)
    records.schedule(record, 5.0)
    records.schedule(record, 3.0)
    assert records.next_due(2.9) is None
    assert records.next_due(10.0) is record
    assert records.next_due(10.0) is None
    records.schedule(record, 20.0)
    records.remove(record)
    assert records.next_due(30.0) is None


def test_so_many_are_closed_at_once_and_so_many_per_second_after_that() -> None:
    budget = ClosingBudget()
    assert sum(budget.spend(50.0) for _ in range(CLOSINGS_AT_ONCE * 2)) == CLOSINGS_AT_ONCE
    assert sum(budget.spend(60.0) for _ in range(CLOSINGS_AT_ONCE)) == 10 * CLOSINGS_PER_SECOND
