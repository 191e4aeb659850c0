"""When a connection that returns 429 is given up: after attempts, time, and evidence that rules out chance."""

import random
from typing import cast

import pytest

from worker.decisions.backoff import ATTEMPTS_BEFORE_GIVING_UP, SECONDS_BEFORE_GIVING_UP
from worker.decisions.stall import (
    CLOSINGS_PER_SECOND,
    DECISIVE_EVIDENCE,
    MAX_CLOSING_BURST,
    ClosingBudget,
    PriorRejections,
    References,
    StalledConnection,
    StalledConnections,
)
from worker.delivery.fanout import Delivery


def probe(record: StalledConnection[Delivery], references: References, passed: int, throttled: int) -> None:
    """One throttled probe, and the reference posts until the next one."""
    record.post(None)  # type: ignore[arg-type]
    record.probe_rejected()
    references.passed += passed
    references.throttled += throttled
    record.update_evidence()


def test_without_references_there_is_no_evidence() -> None:
    references = References()
    record = StalledConnection[Delivery]("c", 0.0, references)
    for _ in range(1_000):
        probe(record, references, 0, 0)
    assert record.evidence == 0
    assert not record.does_not_read(1e9)


def test_giving_up_takes_attempts_time_and_evidence() -> None:
    references = References()
    record = StalledConnection[Delivery]("c", 100.0, references)
    while record.rejected < ATTEMPTS_BEFORE_GIVING_UP - 1:
        probe(record, references, 10_000, 0)
    assert record.evidence > DECISIVE_EVIDENCE
    assert not record.does_not_read(1_000.0)
    probe(record, references, 10_000, 0)
    assert not record.does_not_read(100.0 + SECONDS_BEFORE_GIVING_UP - 0.1)
    assert record.does_not_read(100.0 + SECONDS_BEFORE_GIVING_UP)


def test_eight_probes_suffice_beside_a_busy_room_and_sixteen_beside_reference_posts() -> None:
    for per_probe, max_probes in ((600, 8), (60, 16)):
        references = References()
        record = StalledConnection[Delivery]("c", 0.0, references)
        while not record.does_not_read(60.0):
            probe(record, references, per_probe, 0)
        assert record.rejected <= max_probes


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_chance_never_gives_a_connection_up(share: float) -> None:
    """Throttling by the account, at any share, never counts as evidence against a connection, over a million probes."""
    rng = random.Random(7)
    references = References()
    highest = 0.0
    record = StalledConnection[Delivery]("c", 0.0, references)
    for _ in range(100_000):
        throttled = sum(rng.random() < share for _ in range(10))
        record.post(None)  # type: ignore[arg-type]
        references.throttled += throttled
        references.passed += 10 - throttled
        if rng.random() < share:
            record.probe_rejected()
            record.update_evidence()
        else:
            record.probe_passed(0.0)
        highest = max(highest, record.evidence)
    assert highest < DECISIVE_EVIDENCE / 2


def test_probes_are_sent_at_most_once_per_second_and_back_off() -> None:
    references = References()
    record = StalledConnection[Delivery]("c", 0.0, references)
    pauses = []
    for _ in range(20):
        probe(record, references, 0, 0)
        pauses.append(record.retry_seconds(0.5, account_throttles=False))
    assert min(pauses) >= 1
    assert pauses == sorted(pauses)
    assert pauses[-1] > 5


def test_the_first_retry_is_immediate_and_backs_off_if_the_account_throttles() -> None:
    record = StalledConnection[Delivery]("c", 0.0, References())
    assert record.retry_seconds(0.99, account_throttles=False) <= 0.2
    probe(record, record.references, 0, 0)
    assert record.retry_seconds(0.99, account_throttles=True) <= 0.4


def test_a_remainder_with_a_retry_history_still_takes_probes_here() -> None:
    references = References()
    record = StalledConnection[Delivery]("c", 1_000.0, references)
    record.resume(PriorRejections(99, 10.0, 1e9))
    assert not record.does_not_read(1_000.0)
    probe(record, references, 1_000, 0)
    assert not record.does_not_read(1_000.0), "it takes two probes here"
    probe(record, references, 1_000, 0)
    assert record.does_not_read(1_000.0)


class FakeDelivery:
    """The part of a delivery that a line uses."""

    def __init__(self, order: int = 0) -> None:
        self.stalled: StalledConnection[Delivery] | None = None
        self.fanout = self
        self.order = (order, 0)


def test_a_delivery_may_leave_the_line_only_after_failed_probes_since_it_joined() -> None:
    references = References()
    record = StalledConnection[Delivery]("c", 0.0, references)
    first, second = cast(Delivery, FakeDelivery(1)), cast(Delivery, FakeDelivery(2))
    record.line_up(first, 0.0)
    probe(record, references, 1_000, 0)
    assert not record.may_hand_off(first)
    probe(record, references, 1_000, 0)
    assert record.may_hand_off(first)
    record.line_up(second, 0.0)
    assert not record.may_hand_off(second)
    probe(record, references, 1_000, 0)
    assert record.may_hand_off(second)
    record.remove_from_line(second)
    assert not record.may_hand_off(second)
    record.post(first)
    record.remove_from_line(first)
    record.probe_rejected()
    record.line_up(first, 0.0, returning=True)
    assert record.may_hand_off(first)


def test_a_line_is_in_broadcast_order_not_arrival_order() -> None:
    record = StalledConnection[Delivery]("c", 0.0, References())
    waiting = [cast(Delivery, FakeDelivery(order)) for order in (5, 1, 3)]
    for each in waiting:
        record.line_up(each, 0.0)
    assert list(record.line) == [waiting[1], waiting[2], waiting[0]]
    assert record.first() is waiting[1]


def test_the_number_of_followers_doubles_while_probes_pass() -> None:
    record = StalledConnection[Delivery]("c", 0.0, References())
    for order in range(100):
        record.line_up(cast(Delivery, FakeDelivery(order)), 0.0)
    followers = []
    for _ in range(5):
        record.probe_passed(1.0)
        followers.append(len(record.followers()))
    assert followers == [0, 1, 3, 7, 15]
    record.follower_rejected()
    assert not record.followers()


def test_a_client_that_reads_occasionally_is_given_up_only_when_it_is_far_behind() -> None:
    references = References()
    record = StalledConnection[Delivery]("c", 0.0, references)
    for second in range(0, 90, 3):
        probe(record, references, 1_000, 0)
        probe(record, references, 1_000, 0)
        assert not record.does_not_read(float(second))
        record.probe_passed(float(second))
    probe(record, references, 1_000, 0)
    assert record.does_not_read(121.0)


def test_records_without_a_line_expire_and_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.decisions.stall.MAX_IDLE", 10)
    records = StalledConnections[Delivery](References())
    for number in range(25):
        records.rest(records.add(f"c{number}", 0.0), 0.0)
    assert len(records) == 10
    assert not records.undecided
    records.rest(records.add("late", 100.0), 100.0)
    assert set(records.by_id) == {"late"}


def test_a_record_is_due_once() -> None:
    records = StalledConnections[Delivery](References())
    record = records.add("c", 0.0)
    records.schedule(record, 5.0)
    records.schedule(record, 3.0)
    assert records.next_due(2.9) is None
    assert records.next_due(10.0) is record
    assert records.next_due(10.0) is None
    records.schedule(record, 20.0)
    records.remove(record)
    assert records.next_due(30.0) is None


def test_closes_are_limited_to_a_burst_and_a_rate_per_second() -> None:
    budget = ClosingBudget()
    assert sum(budget.spend(50.0) for _ in range(MAX_CLOSING_BURST * 2)) == MAX_CLOSING_BURST
    assert sum(budget.spend(60.0) for _ in range(MAX_CLOSING_BURST)) == 10 * CLOSINGS_PER_SECOND
