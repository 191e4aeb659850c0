"""Kicks: which requests a delivery has, what their responses mean, and how fast they are sent."""

import asyncio
import math
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise

import pytest

from gatecast import Broadcast
from gatecast.broadcast import Close
from gatecast.frames import V1, V2
from tests.engine_doubles import EngineFixture, run_engine
from tests.pipeline_doubles import ids, now
from worker.decisions.checkpoint import Checkpoint
from worker.decisions.history import lacks_offset
from worker.decisions.outcome import Outcome
from worker.delivery.fanout import Delivery
from worker.delivery.kicks import BURST, KICK_SHARE, KickFanout, Kicks
from worker.ports import Member

AT_MS = 1_700_000_000_000
FRAME = '{"type":"closed","code":"banned","retry":true}'


def kick(**fields: object) -> Broadcast:
    close = Close(code="banned", retry=True)
    return Broadcast(**{"v": 2, "id": "one", "room": "lobby", "close": close, "published_at_ms": AT_MS, **fields})  # type: ignore[arg-type]


class Kicked:
    """A fan-out of a kick, and which connections it reported as gone and as closed."""

    def __init__(self, *members: Member, broadcast: Broadcast | None = None, start: Checkpoint | None = None) -> None:
        self.gone: list[str] = []
        self.closed: list[str] = []
        self.totals = dict.fromkeys(Outcome, 0)
        self.fanout = KickFanout(
            broadcast or kick(),
            start or Checkpoint(),
            lambda: 0.0,
            order=(0, 0),
            prior_rejections=None,
            totals=self.totals,
            gone=lambda delivery: self.gone.append(delivery.connection_id),
            closed=lambda delivery: self.closed.append(delivery.connection_id),
        )
        self.fanout.add_page(members, last=True)

    def take(self) -> Delivery:
        """The next delivery, posted."""
        delivery = self.fanout.take()
        assert delivery is not None
        delivery.attempts += 1
        self.fanout.in_flight += 1
        return delivery

    def accept(self, delivery: Delivery) -> None:
        """As the engine does it."""
        self.fanout.in_flight -= 1
        self.fanout.delivered(delivery)
        self.totals[Outcome.DELIVERED] += 1


def request(delivery: Delivery) -> tuple[str, str]:
    return delivery.body.method, delivery.body.payload.decode()


# What is sent


def test_a_v1_connection_is_deleted_and_a_v2_connection_receives_the_reason_before() -> None:
    kicked = Kicked(Member("a=", 0, V1), Member("b=", 0, V2))
    first, second = kicked.take(), kicked.take()
    assert (request(first), request(second)) == (("DELETE", ""), ("POST", FRAME))
    kicked.accept(second)
    assert not kicked.closed
    assert kicked.totals[Outcome.DELIVERED] == 0
    assert second.attempts == 0, "the second request has its own attempts"
    assert kicked.take() is second
    assert request(second) == ("DELETE", "")
    kicked.accept(first)
    kicked.accept(second)
    assert kicked.closed == ["a=", "b="]
    assert kicked.totals == {**dict.fromkeys(Outcome, 0), Outcome.DELIVERED: 2}
    assert kicked.fanout.counts[Outcome.DELIVERED] == 2
    assert kicked.fanout.settled


@pytest.mark.parametrize("outcome", [Outcome.REJECTED, Outcome.UNDELIVERED])
def test_a_missed_frame_misses_nothing_but_a_missed_deletion_is_missed(outcome: Outcome) -> None:
    kicked = Kicked(Member("b=", 0, V2))
    delivery = kicked.take()
    delivery.counted_attempts = delivery.rejections = 5
    kicked.fanout.settle(delivery, outcome)
    assert not kicked.fanout.missed
    assert kicked.take() is delivery
    assert (delivery.counted_attempts, delivery.rejections) == (0, 0)
    kicked.fanout.settle(delivery, outcome)
    assert kicked.fanout.missed == [(delivery, outcome)]


def test_a_connection_that_is_gone_is_not_deleted() -> None:
    kicked = Kicked(Member("b=", 0, V2))
    kicked.fanout.settle(kicked.take(), Outcome.GONE)
    assert (kicked.gone, kicked.closed) == (["b="], [])
    assert kicked.fanout.settled


def test_excluded_members_stay_open_even_if_the_publisher_has_set_an_offset() -> None:
    broadcast = kick(except_=("a=", "b="), offset=7)
    kicked = Kicked(Member("a=", 0, V1), Member("b=", 0, V2), broadcast=broadcast)
    assert kicked.fanout.take() is None
    assert kicked.fanout.settled


def test_after_a_crash_between_both_requests_the_delivery_begins_again() -> None:
    kicked = Kicked(Member("a=", 0, V1), Member("b=", 0, V2))
    first, second = kicked.take(), kicked.take()
    kicked.accept(second)
    checkpoint = kicked.fanout.checkpoint()
    assert checkpoint.pending == (("a=", 0), ("b=", 0))
    resumed = Kicked(start=checkpoint)
    assert [request(resumed.take()) for _ in range(2)] == [("DELETE", ""), ("POST", FRAME)]
    assert first.attempts == 1


def test_a_stopped_kick_is_woken_when_its_last_response_is_in() -> None:
    kicked = Kicked(Member("b=", 0, V2))
    delivery = kicked.take()
    kicked.fanout.stop()
    kicked.fanout.changed.clear()
    kicked.accept(delivery)
    assert kicked.fanout.changed.is_set()
    assert kicked.fanout.take() is None
    assert kicked.fanout.checkpoint().pending == (("b=", 0),)


def test_members_who_joined_later_are_no_targets() -> None:
    times = [None, 0, AT_MS, AT_MS + 5_000, AT_MS + 5_001, AT_MS + 60_000]
    kicked = Kicked(*(Member(f"c{number}=", at_ms) for number, at_ms in enumerate(times)))
    taken = []
    while (delivery := kicked.fanout.take()) is not None:
        taken.append(delivery.connection_id)
    assert taken == ["c0=", "c1=", "c2=", "c3="]


def test_a_kick_is_no_message_of_a_rooms_history() -> None:
    assert not lacks_offset(kick())
    assert lacks_offset(Broadcast(id="one", room="lobby", data="x"))


# What responses mean


def offer_kick(fixture: EngineFixture, *members: Member) -> KickFanout:
    fanout = KickFanout(
        kick(),
        Checkpoint(),
        now,
        order=(0, 0),
        prior_rejections=None,
        totals=fixture.metrics.deliveries,
        gone=lambda _: None,
    )
    fanout.add_page(members, last=True)
    fixture.engine.offer(fanout)
    return fanout


def run_kick(*members: Member, respond: Mapping[int, int], seconds: float) -> EngineFixture:
    """Run an engine with one kick. `respond` has the status of the nth request to each connection; others succeed."""

    async def script(fixture: EngineFixture) -> None:
        offer_kick(fixture, *members)
        await asyncio.sleep(seconds)

    return run_engine(script, lambda: EngineFixture(lambda _id, nth: respond.get(nth, 200)))


def test_requests_that_delete_connections_are_no_posts() -> None:
    found = run_kick(*(Member(each, 0, V2) for each in ids(10)), respond={2: 204}, seconds=1)
    assert found.metrics.posts == {200: 10}
    assert found.metrics.deliveries[Outcome.DELIVERED] == 10
    assert sum(found.metrics.post_duration.counts) == 10


def test_throttled_deletions_are_the_accounts_and_throttled_frames_are_nobodys() -> None:
    """A frame's 429 may be one client's buffer; it is retried, and nothing is concluded from it."""
    found = run_kick(Member("a=", 0, V2), respond={1: 429, 3: 429, 4: 429, 5: 204}, seconds=20)
    assert found.metrics.deliveries[Outcome.DELIVERED] == 1
    assert found.engine._slow.references.throttled == 2
    assert found.metrics.throttled_posts == {"account": 0, "connection": 1}
    assert found.engine.stalled_connections == 0


def test_a_deletion_that_is_throttled_while_others_pass_is_given_up_after_its_attempts_and_time() -> None:
    async def script(fixture: EngineFixture) -> None:
        fanout = offer_kick(fixture, Member("stuck=", 0, V1))
        for second in range(120):
            fixture.offer(f"b{second}", *ids(50))
            await asyncio.sleep(1)
            assert second >= 29 or not fanout.missed
        assert [outcome for _, outcome in fanout.missed] == [Outcome.UNDELIVERED]

    run_engine(script, lambda: EngineFixture(lambda name, _nth: 429 if name == "stuck=" else 200))


def test_while_the_account_throttles_no_deletion_is_given_up() -> None:
    async def script(fixture: EngineFixture) -> None:
        fixture.pool.errand_status = 429
        fanout = offer_kick(fixture, *(Member(each, 0, V1) for each in ids(20)))
        await asyncio.sleep(300)
        assert not fanout.missed
        assert len(fanout.unsettled) == 20

    run_engine(script, lambda: EngineFixture(lambda _name, _nth: 429))


# How fast


def test_after_a_burst_requests_are_paced_by_a_share_of_the_rate() -> None:
    kicks = Kicks(1_000)
    kicks.add(Kicked(Member("a=", 0)).fanout)
    sent: list[float] = []
    now = 50.0
    while now < 60:
        if kicks.due_at() <= now:
            kicks.sent(1_000, now)
            sent.append(now)
        else:
            now += 0.001
    assert sent[:BURST] == [50.0] * BURST
    assert len(sent) == pytest.approx(BURST + 10 * KICK_SHARE * 1_000, abs=3)
    paced = sent[BURST:]
    assert min(after - before for before, after in pairwise(paced)) > 0.5 / (KICK_SHARE * 1_000)


def test_nothing_is_due_without_kicks_or_while_too_many_requests_are_in_flight() -> None:
    kicks, kicked = Kicks(2), Kicked(*(Member(each, 0) for each in ids(3)))
    assert kicks.due_at() == math.inf
    kicks.add(kicked.fanout)
    assert kicks.due_at() == -math.inf
    deliveries = [kicked.take(), kicked.take()]
    assert kicks.due_at() == math.inf
    kicked.accept(deliveries[0])
    assert kicks.due_at() == -math.inf


def test_kicks_of_different_rooms_take_turns() -> None:
    kicks = Kicks(100)
    for room, members in (("large", 50), ("small", 3)):
        kicks.add(Kicked(*(Member(each, 0) for each in ids(members)), broadcast=kick(room=room)).fanout)
    taken = [kicks.fresh.take() for _ in range(6)]
    assert Counter(each.fanout.broadcast.room for each in taken if each) == {"large": 3, "small": 3}


def test_retries_are_paced_like_first_attempts() -> None:
    """Where every deletion fails, their retries do not fill the pool."""

    async def script(fixture: EngineFixture) -> None:
        offer_kick(fixture, *(Member(each, 0, V1) for each in ids(900)))
        for second in range(60):
            fixture.offer(f"b{second}", "ok=")
            await asyncio.sleep(1)
        deletions = sum(name != "ok=" for name, _ in fixture.pool.posts)
        assert 60 * KICK_SHARE * 100 * 0.8 < deletions <= BURST + 60 * KICK_SHARE * 100 + 2

    run_engine(
        script,
        lambda: EngineFixture(lambda name, _nth: 200 if name == "ok=" else 503, posts_per_second=100, size=64),
    )
