"""Deliveries to connections that return 429: they wait in line and are posted in order, or are missed."""

import math
from itertools import pairwise
from typing import cast

import pytest

from gatecast import Broadcast
from worker.decisions.backoff import ATTEMPTS_BEFORE_GIVING_UP, SECONDS_BEFORE_GIVING_UP
from worker.decisions.checkpoint import Checkpoint
from worker.decisions.outcome import Outcome
from worker.decisions.rate import RateController
from worker.decisions.stall import KEEP_PROBE_SECONDS, MAX_CLOSING_BURST, PriorRejections, StalledConnection
from worker.delivery.fanout import Delivery, Fanout
from worker.delivery.slow_clients import SlowClients
from worker.ports import Member


class Rate:
    """Records the reports about posts: whether each one passed, and whether it was a first attempt or a retry."""

    def __init__(self) -> None:
        self.account_throttles = False
        self.reported: list[str] = []

    def passed(self, first_attempts: int, retries: int = 0, others: int = 0) -> None:
        self.reported += ["first passed"] * first_attempts + ["retry passed"] * retries + ["later one passed"] * others

    def throttled(self, *, retry: bool) -> None:
        self.reported.append("retry throttled" if retry else "first throttled")


class Counts:
    def __init__(self) -> None:
        self.slow_clients = {"closed": 0, "kept": 0, "failed": 0}


class Harness:
    """`SlowClients` with scripted responses: `deliver` does what the engine does with a delivery."""

    def __init__(self, *, closes: bool = True) -> None:
        self.now = 0.0
        self.rate = Rate()
        self.counts = Counts()
        self.closing: list[StalledConnection[Delivery]] = []
        self.requeued: list[Delivery] = []
        self.slow = SlowClients(
            cast(RateController, self.rate),
            self.counts,
            close=self.closing.append if closes else None,
            requeue=self.requeued.append,
        )
        self.posted: list[tuple[str, str]] = []

    def fanout(
        self,
        name: str,
        *connections: str,
        published_at: int = 0,
        prior_rejections: PriorRejections | None = None,
        part: str = "",
    ) -> Fanout:
        fanout = Fanout(
            Broadcast(id=name, room="chat", data="x", part=part),
            Checkpoint(),
            lambda: self.now,
            order=(published_at, 0),
            prior_rejections=prior_rejections,
            totals=dict.fromkeys(Outcome, 0),
            gone=lambda _: None,
        )
        fanout.add_page([Member(connection, 0) for connection in connections or ("stuck",)], last=True)
        return fanout

    def take(self, fanout: Fanout) -> Delivery:
        delivery = fanout.take()
        assert delivery is not None
        return delivery

    def post(self, delivery: Delivery, status: int) -> None:
        """Post the delivery; `status` is the response."""
        self.posted.append((delivery.fanout.broadcast.id, delivery.connection_id))
        self.respond(delivery, status)

    def respond(self, delivery: Delivery, status: int) -> None:
        if status == 429:
            self.slow.throttled(delivery, self.now)
            return
        assert status == 200
        delivery.fanout.delivered(delivery)
        if delivery.stalled is not None:
            self.slow.passed(delivery, self.now)

    def deliver(self, fanout: Fanout, status: int) -> None:
        """Post every delivery of the fan-out that is not held back."""
        while (delivery := fanout.take()) is not None:
            if not self.slow.hold_back(delivery, self.now):
                self.post(delivery, status)

    def probe(self, status: int) -> Delivery | None:
        """Post the next probe when it is due. None if no delivery waits."""
        if self.slow.due_at() == math.inf:
            return None
        self.now = max(self.now, self.slow.due_at())
        delivery = self.slow.next_probe(self.now)
        if delivery is not None:
            self.post(delivery, status)
        return delivery

    def give_up(self, *fanouts: Fanout) -> None:
        """Deliver these until their connections are given up: every probe returns 429 while other posts pass."""
        for fanout in fanouts:
            self.deliver(fanout, 429)
        while self.slow.due_at() < math.inf:
            self.probe(429)
            self.slow.references.passed += 1_000


def missed(fanout: Fanout) -> list[tuple[str, Outcome]]:
    return [(delivery.connection_id, outcome) for delivery, outcome in fanout.missed]


def test_deliveries_wait_behind_one_probe_and_follow_in_order() -> None:
    harness = Harness()
    fanouts = [harness.fanout(f"b{number}", published_at=number) for number in range(5)]
    for fanout in fanouts:
        harness.deliver(fanout, 429)
    assert harness.posted == [("b0", "stuck")]
    assert len(harness.slow) == 1
    assert all(fanout.only_waiting for fanout in fanouts)
    harness.probe(429)
    passed_at = None
    while len(harness.slow):
        harness.probe(200)
        passed_at = passed_at or harness.now
    assert harness.posted == [(name, "stuck") for name in ("b0", "b0", "b0", "b1", "b2", "b3", "b4")]
    assert harness.now == passed_at, "the line follows at once"
    assert all(fanout.settled for fanout in fanouts)
    assert harness.slow.due_at() == math.inf


def test_a_line_is_in_publishing_order() -> None:
    harness = Harness()
    late, early, middle = (harness.fanout(f"b{at}", published_at=at) for at in (9, 1, 5))
    for fanout in (late, early, middle):
        harness.deliver(fanout, 429)
    while len(harness.slow):
        harness.probe(200)
    assert harness.posted == [("b9", "stuck"), ("b1", "stuck"), ("b5", "stuck"), ("b9", "stuck")]


def test_only_one_probe_is_in_flight() -> None:
    harness = Harness()
    for number in range(3):
        harness.deliver(harness.fanout(f"b{number}", published_at=number), 429)
    harness.now = harness.slow.due_at()
    in_flight = harness.slow.next_probe(harness.now)
    assert in_flight is not None
    harness.deliver(harness.fanout("b3", published_at=3), 429)
    assert harness.slow.next_probe(harness.now + 1_000) is None
    harness.respond(in_flight, 200)
    assert harness.slow.next_probe(harness.now) is not None


def test_a_stalled_connection_is_probed_at_most_once_per_second() -> None:
    harness = Harness()
    at = []
    for number in range(1_000):
        harness.deliver(harness.fanout(f"b{number}", published_at=number), 429)
    while harness.now < 60 and harness.probe(429) is not None:
        at.append(harness.now)
    retries = at[1:]
    assert all(later - earlier >= 1 for earlier, later in pairwise(retries))
    assert len(harness.posted) <= 20


def test_a_connection_is_given_up_and_closed_after_eight_posts_and_thirty_seconds() -> None:
    harness = Harness()
    fanouts = [harness.fanout(f"b{number}", published_at=number) for number in range(10)]
    harness.give_up(*fanouts)
    assert harness.now >= SECONDS_BEFORE_GIVING_UP
    assert len(harness.posted) >= ATTEMPTS_BEFORE_GIVING_UP
    assert [missed(fanout) for fanout in fanouts] == [[("stuck", Outcome.UNDELIVERED)]] * 10
    [record] = harness.closing
    assert record.connection_id == "stuck"

    posts = len(harness.posted)
    meanwhile = harness.fanout("meanwhile")
    harness.now += 3_600
    harness.deliver(meanwhile, 429)
    assert missed(meanwhile) == [("stuck", Outcome.UNDELIVERED)], "while it is being closed"

    harness.slow.closed(record, harness.now, succeeded=True)
    assert harness.counts.slow_clients == {"closed": 1, "kept": 0, "failed": 0}
    assert len(harness.slow) == 0
    harness.deliver(harness.fanout("after"), 200)
    assert len(harness.posted) == posts + 1, "a new connection with this id is posted to"


def test_without_references_no_connection_is_given_up() -> None:
    harness = Harness()
    harness.deliver(harness.fanout("b"), 429)
    assert harness.slow.undecided
    while harness.now < 3_600:
        assert harness.probe(429) is not None
    assert not harness.closing


@pytest.mark.parametrize("closes", [True, False], ids=["closing fails", "all are kept"])
def test_a_kept_connection_misses_everything_at_once_until_a_probe_passes(*, closes: bool) -> None:
    harness = Harness(closes=closes)
    harness.give_up(harness.fanout("b"))
    if closes:
        harness.slow.closed(harness.closing[0], harness.now, succeeded=False)
    assert harness.counts.slow_clients == {"closed": 0, "kept": int(not closes), "failed": int(closes)}
    assert not harness.slow.undecided
    posts = len(harness.posted)
    for status in (429, 429, 200):
        for _ in range(100):
            harness.now += KEEP_PROBE_SECONDS * 0.7 / 100
            fanout = harness.fanout("soon")
            harness.deliver(fanout, 200)
            assert missed(fanout) == [("stuck", Outcome.UNDELIVERED)]
        assert len(harness.posted) == posts
        harness.now += KEEP_PROBE_SECONDS
        probing = harness.fanout("probing")
        harness.deliver(probing, 429)
        harness.probe(status)
        posts += 1
        assert len(harness.posted) == posts
        assert missed(probing) == ([("stuck", Outcome.UNDELIVERED)] if status == 429 else [])
    assert len(harness.slow) == 0
    harness.deliver(harness.fanout("after"), 200)
    assert len(harness.posted) == posts + 1


def test_the_number_of_closes_is_limited_and_the_other_connections_are_kept() -> None:
    harness = Harness()
    many = [f"stuck{number}" for number in range(MAX_CLOSING_BURST + 50)]
    harness.give_up(harness.fanout("b", *many))
    closed, kept = len(harness.closing), harness.counts.slow_clients["kept"]
    assert closed + kept == len(many)
    assert MAX_CLOSING_BURST <= closed < len(many), "and a few more in the seconds that this took"


def test_a_gone_probe_settles_its_line_as_gone() -> None:
    harness = Harness()
    fanouts = [harness.fanout(f"b{number}", published_at=number) for number in range(3)]
    for fanout in fanouts:
        harness.deliver(fanout, 429)
    harness.now = harness.slow.due_at()
    probe = harness.slow.next_probe(harness.now)
    assert probe is not None
    harness.slow.ended(probe, Outcome.GONE, harness.now)
    fanouts[0].settle(probe, Outcome.GONE)
    assert [fanout.counts[Outcome.GONE] for fanout in fanouts] == [1, 1, 1]
    assert len(harness.slow) == 0


def test_a_probe_that_fails_otherwise_is_retried_and_keeps_its_place() -> None:
    harness = Harness()
    first, second = (harness.fanout(f"b{number}", published_at=number) for number in range(2))
    harness.deliver(first, 429)
    harness.deliver(second, 429)
    harness.now = harness.slow.due_at()
    probe = harness.slow.next_probe(harness.now)
    assert probe is not None
    harness.slow.retry(probe, harness.now + 7)
    assert harness.slow.due_at() == harness.now + 7
    assert harness.probe(200) is probe


def test_posts_in_flight_beside_the_first_429_are_no_new_evidence() -> None:
    harness = Harness()
    first, second = (harness.take(harness.fanout(f"b{number}", published_at=number)) for number in range(2))
    harness.post(first, 429)
    harness.post(second, 429)
    [record] = harness.slow.records.values()
    assert record.rejected == 1
    assert harness.rate.reported == ["first throttled"]


def test_only_the_first_two_429s_of_a_connection_are_reported_to_the_rate_controller() -> None:
    harness = Harness()
    harness.deliver(harness.fanout("b"), 429)
    for _ in range(10):
        harness.probe(429)
    assert harness.rate.reported == ["first throttled", "retry throttled"]
    harness.probe(200)
    assert harness.rate.reported[2:] == ["later one passed"]


def test_a_remainder_with_a_retry_history_waits_before_its_first_post_here() -> None:
    harness = Harness()
    harness.now = 100.0
    remainder = harness.fanout("b", part="r-1", prior_rejections=PriorRejections(12, 0.0, 20.0))
    harness.deliver(remainder, 429)
    assert not harness.posted
    assert remainder.only_waiting
    assert harness.slow.due_at() == harness.now, "one probe, at once"
    harness.probe(429)
    harness.slow.references.passed += 1_000
    harness.probe(429)
    assert len(harness.posted) == 2, "this worker decides on a probe of its own"
    assert len(harness.closing) == 1


def test_three_failures_of_another_kind_end_the_stall() -> None:
    harness = Harness()
    first, second = (harness.fanout(f"b{number}", published_at=number) for number in range(2))
    for fanout in (first, second):
        harness.deliver(fanout, 429)
    for failures in (1, 2, 3):
        harness.now = max(harness.now, harness.slow.due_at())
        delivery = harness.slow.next_probe(harness.now)
        assert delivery is not None
        assert harness.slow.retry(delivery, harness.now + 1) == (failures < 3)
    assert not harness.slow.records
    assert [each.fanout for each in harness.requeued] == [second]
    assert harness.requeued[0].waiting


def test_a_stopped_broadcast_leaves_every_line() -> None:
    harness = Harness()
    stopping, staying = (harness.fanout(f"b{number}", published_at=number) for number in range(2))
    harness.deliver(stopping, 429)
    harness.deliver(staying, 429)
    stopping.stop()
    assert harness.probe(200) is not None
    assert harness.posted[-1] == ("b1", "stuck")
    assert staying.settled
    assert [connection for connection, _ in stopping.checkpoint().pending] == ["stuck"], "another worker posts it"


def test_a_probe_whose_broadcast_has_stopped_is_not_retried() -> None:
    harness = Harness()
    stopping, staying = (harness.fanout(f"b{number}", published_at=number) for number in range(2))
    harness.deliver(stopping, 429)
    harness.deliver(staying, 429)
    harness.now = harness.slow.due_at()
    in_flight = harness.slow.next_probe(harness.now)
    assert in_flight is not None
    stopping.stop()
    harness.respond(in_flight, 429)
    assert harness.probe(200) is not None
    assert harness.posted[-1] == ("b1", "stuck")
    assert len(harness.slow) == 0


def test_a_broadcast_whose_checkpoint_is_behind_posts_no_probe() -> None:
    harness = Harness()
    fanout = harness.fanout("b")
    harness.deliver(fanout, 429)
    fanout.checkpoint_schedule.since_written = 1_000
    assert harness.probe(200) is None
    fanout.checkpoint_schedule.since_written = 0
    assert harness.probe(200) is not None
