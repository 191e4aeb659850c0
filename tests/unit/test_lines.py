"""Deliveries to connections that return 429: they wait in line and follow in order, or are missed."""

import math
from itertools import pairwise
from typing import cast

import pytest

from gatecast import Broadcast
from worker.decisions.backoff import ATTEMPTS_BEFORE_GIVING_UP, SECONDS_BEFORE_GIVING_UP
from worker.decisions.checkpoint import Checkpoint
from worker.decisions.outcome import Outcome
from worker.decisions.rate import RateController
from worker.decisions.stall import CLOSINGS_AT_ONCE, KEEP_PROBE_SECONDS, Refused, StalledConnection
from worker.delivery.fanout import Delivery, Fanout
from worker.delivery.slow_clients import SlowClients
from worker.ports import Member


class Rate:
    """What it is told: of each post whether it passed, and whether its connection had been rejected before."""

    def __init__(self) -> None:
        self.account_throttles = False
        self.told: list[str] = []

    def passed(self, firsts: int, retries: int = 0, others: int = 0) -> None:
        self.told += ["first passed"] * firsts + ["retry passed"] * retries + ["later one passed"] * others

    def throttled(self, *, retry: bool) -> None:
        self.told.append("retry throttled" if retry else "first throttled")


class Counts:
    def __init__(self) -> None:
        self.slow_clients = {"closed": 0, "kept": 0, "failed": 0}


class Scene:
    """Slow clients whose posts this plays: `deliver` does what the engine does with one delivery."""

    def __init__(self, *, closes: bool = True) -> None:
        self.now = 0.0
        self.rate = Rate()
        self.counts = Counts()
        self.closing: list[StalledConnection] = []
        self.requeued: list[Delivery] = []
        self.slow = SlowClients(
            cast(RateController, self.rate),
            self.counts,
            close=self.closing.append if closes else None,
            requeue=self.requeued.append,
        )
        self.posted: list[tuple[str, str]] = []

    def fanout(
        self, name: str, *connections: str, published_at: int = 0, carried: Refused | None = None, part: str = ""
    ) -> Fanout:
        fanout = Fanout(
            Broadcast(id=name, room="chat", data="x", part=part),
            Checkpoint(),
            lambda: self.now,
            order=(published_at, 0),
            carried=carried,
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
        """It is posted, and this is the response."""
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
        """All that it has: posted, unless it is held back."""
        while (delivery := fanout.take()) is not None:
            if not self.slow.holds_back(delivery, self.now):
                self.post(delivery, status)

    def probe(self, status: int) -> Delivery | None:
        """The next probe, when it is due. None if nothing waits any more."""
        if self.slow.due_at() == math.inf:
            return None
        self.now = max(self.now, self.slow.due_at())
        delivery = self.slow.next_probe(self.now)
        if delivery is not None:
            self.post(delivery, status)
        return delivery

    def give_up(self, *fanouts: Fanout) -> None:
        """Other posts pass all the time, and nothing gets through to the connections of these."""
        for fanout in fanouts:
            self.deliver(fanout, 429)
        while self.slow.due_at() < math.inf:
            self.probe(429)
            self.slow.references.passed += 1_000


def missed(fanout: Fanout) -> list[tuple[str, Outcome]]:
    return [(delivery.connection_id, outcome) for delivery, outcome in fanout.missed]


def test_what_is_for_it_waits_behind_one_probe_and_follows_in_order() -> None:
    scene = Scene()
    fanouts = [scene.fanout(f"b{number}", published_at=number) for number in range(5)]
    for fanout in fanouts:
        scene.deliver(fanout, 429)
    assert scene.posted == [("b0", "stuck")]
    assert len(scene.slow) == 1
    assert all(fanout.only_waits for fanout in fanouts)
    scene.probe(429)
    passed_at = None
    while len(scene.slow):
        scene.probe(200)
        passed_at = passed_at or scene.now
    assert scene.posted == [(name, "stuck") for name in ("b0", "b0", "b0", "b1", "b2", "b3", "b4")]
    assert scene.now == passed_at, "the line follows at once"
    assert all(fanout.settled for fanout in fanouts)
    assert scene.slow.due_at() == math.inf


def test_a_line_is_in_the_order_of_publishing() -> None:
    scene = Scene()
    late, early, middle = (scene.fanout(f"b{at}", published_at=at) for at in (9, 1, 5))
    for fanout in (late, early, middle):
        scene.deliver(fanout, 429)
    while len(scene.slow):
        scene.probe(200)
    assert scene.posted == [("b9", "stuck"), ("b1", "stuck"), ("b5", "stuck"), ("b9", "stuck")]


def test_one_probe_at_a_time() -> None:
    scene = Scene()
    for number in range(3):
        scene.deliver(scene.fanout(f"b{number}", published_at=number), 429)
    scene.now = scene.slow.due_at()
    in_flight = scene.slow.next_probe(scene.now)
    assert in_flight is not None
    scene.deliver(scene.fanout("b3", published_at=3), 429)
    assert scene.slow.next_probe(scene.now + 1_000) is None
    scene.respond(in_flight, 200)
    assert scene.slow.next_probe(scene.now) is not None


def test_however_much_is_for_it_it_is_posted_to_at_most_once_per_second() -> None:
    scene = Scene()
    at = []
    for number in range(1_000):
        scene.deliver(scene.fanout(f"b{number}", published_at=number), 429)
    while scene.now < 60 and scene.probe(429) is not None:
        at.append(scene.now)
    retries = at[1:]
    assert all(later - earlier >= 1 for earlier, later in pairwise(retries))
    assert len(scene.posted) <= 20


def test_after_eight_posts_over_thirty_seconds_it_is_given_up_and_closed() -> None:
    scene = Scene()
    fanouts = [scene.fanout(f"b{number}", published_at=number) for number in range(10)]
    scene.give_up(*fanouts)
    assert scene.now >= SECONDS_BEFORE_GIVING_UP
    assert len(scene.posted) >= ATTEMPTS_BEFORE_GIVING_UP
    assert [missed(fanout) for fanout in fanouts] == [[("stuck", Outcome.UNDELIVERED)]] * 10
    [record] = scene.closing
    assert record.connection_id == "stuck"

    posts = len(scene.posted)
    meanwhile = scene.fanout("meanwhile")
    scene.now += 3_600
    scene.deliver(meanwhile, 429)
    assert missed(meanwhile) == [("stuck", Outcome.UNDELIVERED)], "while it is being closed"

    scene.slow.closed(record, scene.now, succeeded=True)
    assert scene.counts.slow_clients == {"closed": 1, "kept": 0, "failed": 0}
    assert len(scene.slow) == 0
    scene.deliver(scene.fanout("after"), 200)
    assert len(scene.posted) == posts + 1, "whoever has this id now is posted to"


def test_without_references_nobody_is_given_up() -> None:
    scene = Scene()
    scene.deliver(scene.fanout("b"), 429)
    assert scene.slow.undecided
    while scene.now < 3_600:
        assert scene.probe(429) is not None
    assert not scene.closing


@pytest.mark.parametrize("closes", [True, False], ids=["closing fails", "all are kept"])
def test_one_that_is_kept_misses_all_at_once_until_a_probe_passes(*, closes: bool) -> None:
    scene = Scene(closes=closes)
    scene.give_up(scene.fanout("b"))
    if closes:
        scene.slow.closed(scene.closing[0], scene.now, succeeded=False)
    assert scene.counts.slow_clients == {"closed": 0, "kept": int(not closes), "failed": int(closes)}
    assert not scene.slow.undecided
    posts = len(scene.posted)
    for status in (429, 429, 200):
        for _ in range(100):
            scene.now += KEEP_PROBE_SECONDS * 0.7 / 100
            fanout = scene.fanout("soon")
            scene.deliver(fanout, 200)
            assert missed(fanout) == [("stuck", Outcome.UNDELIVERED)]
        assert len(scene.posted) == posts
        scene.now += KEEP_PROBE_SECONDS
        probing = scene.fanout("probing")
        scene.deliver(probing, 429)
        scene.probe(status)
        posts += 1
        assert len(scene.posted) == posts
        assert missed(probing) == ([("stuck", Outcome.UNDELIVERED)] if status == 429 else [])
    assert len(scene.slow) == 0
    scene.deliver(scene.fanout("after"), 200)
    assert len(scene.posted) == posts + 1


def test_only_so_many_are_closed_at_once_and_the_rest_are_kept() -> None:
    scene = Scene()
    many = [f"stuck{number}" for number in range(CLOSINGS_AT_ONCE + 50)]
    scene.give_up(scene.fanout("b", *many))
    closed, kept = len(scene.closing), scene.counts.slow_clients["kept"]
    assert closed + kept == len(many)
    assert CLOSINGS_AT_ONCE <= closed < len(many), "and a few more in the seconds that this took"


def test_a_probe_that_is_gone_settles_its_line_as_gone() -> None:
    scene = Scene()
    fanouts = [scene.fanout(f"b{number}", published_at=number) for number in range(3)]
    for fanout in fanouts:
        scene.deliver(fanout, 429)
    scene.now = scene.slow.due_at()
    probe = scene.slow.next_probe(scene.now)
    assert probe is not None
    scene.slow.ended(probe, Outcome.GONE, scene.now)
    fanouts[0].settle(probe, Outcome.GONE)
    assert [fanout.counts[Outcome.GONE] for fanout in fanouts] == [1, 1, 1]
    assert len(scene.slow) == 0


def test_a_probe_that_fails_in_another_way_is_repeated_and_keeps_its_place() -> None:
    scene = Scene()
    first, second = (scene.fanout(f"b{number}", published_at=number) for number in range(2))
    scene.deliver(first, 429)
    scene.deliver(second, 429)
    scene.now = scene.slow.due_at()
    probe = scene.slow.next_probe(scene.now)
    assert probe is not None
    scene.slow.retry(probe, scene.now + 7)
    assert scene.slow.due_at() == scene.now + 7
    assert scene.probe(200) is probe


def test_what_was_in_flight_beside_the_first_one_says_nothing_new() -> None:
    scene = Scene()
    first, second = (scene.take(scene.fanout(f"b{number}", published_at=number)) for number in range(2))
    scene.post(first, 429)
    scene.post(second, 429)
    [record] = scene.slow.records.values()
    assert record.refused == 1
    assert scene.rate.told == ["first throttled"]


def test_the_rate_hears_of_a_connection_s_first_two_rejections_and_of_no_other() -> None:
    scene = Scene()
    scene.deliver(scene.fanout("b"), 429)
    for _ in range(10):
        scene.probe(429)
    assert scene.rate.told == ["first throttled", "retry throttled"]
    scene.probe(200)
    assert scene.rate.told[2:] == ["later one passed"]


def test_what_a_remainder_carries_makes_it_wait_before_its_first_post_here() -> None:
    scene = Scene()
    scene.now = 100.0
    carried = scene.fanout("b", part="r-1", carried=Refused(12, 0.0, 20.0))
    scene.deliver(carried, 429)
    assert not scene.posted
    assert carried.only_waits
    assert scene.slow.due_at() == scene.now, "one probe, at once"
    scene.probe(429)
    scene.slow.references.passed += 1_000
    scene.probe(429)
    assert len(scene.posted) == 2, "the last word is this worker's own"
    assert len(scene.closing) == 1


def test_what_fails_otherwise_three_times_is_no_matter_of_a_full_buffer() -> None:
    scene = Scene()
    first, second = (scene.fanout(f"b{number}", published_at=number) for number in range(2))
    for fanout in (first, second):
        scene.deliver(fanout, 429)
    for failures in (1, 2, 3):
        scene.now = max(scene.now, scene.slow.due_at())
        delivery = scene.slow.next_probe(scene.now)
        assert delivery is not None
        assert scene.slow.retry(delivery, scene.now + 1) == (failures < 3)
    assert not scene.slow.records
    assert [each.fanout for each in scene.requeued] == [second]
    assert scene.requeued[0].waiting


def test_a_broadcast_that_stops_leaves_every_line() -> None:
    scene = Scene()
    stopping, staying = (scene.fanout(f"b{number}", published_at=number) for number in range(2))
    scene.deliver(stopping, 429)
    scene.deliver(staying, 429)
    stopping.stop()
    assert scene.probe(200) is not None
    assert scene.posted[-1] == ("b1", "stuck")
    assert staying.settled
    assert [connection for connection, _ in stopping.checkpoint().pending] == ["stuck"], "another worker posts it"


def test_a_probe_whose_broadcast_has_stopped_meanwhile_is_not_posted_again() -> None:
    scene = Scene()
    stopping, staying = (scene.fanout(f"b{number}", published_at=number) for number in range(2))
    scene.deliver(stopping, 429)
    scene.deliver(staying, 429)
    scene.now = scene.slow.due_at()
    in_flight = scene.slow.next_probe(scene.now)
    assert in_flight is not None
    stopping.stop()
    scene.respond(in_flight, 429)
    assert scene.probe(200) is not None
    assert scene.posted[-1] == ("b1", "stuck")
    assert len(scene.slow) == 0


def test_a_broadcast_whose_checkpoint_is_behind_posts_no_probe() -> None:
    scene = Scene()
    fanout = scene.fanout("b")
    scene.deliver(fanout, 429)
    fanout.pace.since_written = 1_000
    assert scene.probe(200) is None
    fanout.pace.since_written = 0
    assert scene.probe(200) is not None
