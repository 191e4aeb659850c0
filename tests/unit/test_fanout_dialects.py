"""A fan-out to members of both dialects: who is taken with which body, who is passed over, what survives a crash."""

from typing import Any

import pytest

from gatecast import Broadcast
from gatecast.broadcast import MAX_DATA_BYTES, Presence
from gatecast.frames import V1, V2
from tests.pipeline_doubles import ids
from worker.decisions.checkpoint import WINDOW, Checkpoint
from worker.decisions.outcome import Outcome
from worker.delivery.bodies import TOO_LARGE
from worker.delivery.fanout import MAX_HELD_UP, Delivery, Fanout
from worker.ports import Member

MIXED = [Member(each, 0, frames) for each, frames in zip(ids(4), (V1, V2, V2, V1), strict=True)]
EXCLUDED = ("c0002=", "c0003=")
HUGE = "x" * MAX_DATA_BYTES
ARRIVES = Presence(joined=("ann",))


def fan_out(
    members: list[Member] | None = None, *, start: Checkpoint | None = None, frame: bytes | None = None, **fields: Any
) -> Fanout:
    if "presence" not in fields:
        fields.setdefault("data", "hello")
    if "connections" not in fields:
        fields.setdefault("room", "lobby")
    broadcast = Broadcast(id="one", published_at_ms=1_700_000_000_000, **fields)
    fanout = Fanout(
        broadcast,
        start or Checkpoint(),
        lambda: 0.0,
        order=(0, 0),
        prior_rejections=None,
        totals=dict.fromkeys(Outcome, 0),
        gone=lambda _: None,
        presence_frame=frame,
    )
    if members is not None:
        fanout.add_page(members, last=True)
    return fanout


def take_all(fanout: Fanout) -> list[Delivery]:
    taken = []
    while (delivery := fanout.take()) is not None:
        taken.append(delivery)
    return taken


def taken(fanout: Fanout) -> dict[str, int]:
    """The dialect of each delivery's body."""
    return {delivery.connection_id: delivery.body.frames for delivery in take_all(fanout)}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"c0000=": V1, "c0001=": V2, "c0002=": V2, "c0003=": V1}),
        ({"except_": EXCLUDED}, {"c0000=": V1, "c0001=": V2}),
        ({"except_": EXCLUDED, "offset": 7}, {"c0000=": V1, "c0001=": V2, "c0002=": V2}),
        ({"presence": ARRIVES, "v": 2}, {"c0001=": V2, "c0002=": V2}),
        ({"presence": ARRIVES, "v": 2, "except_": EXCLUDED}, {"c0001=": V2}),
    ],
)
def test_each_member_is_taken_with_its_dialect_or_passed_over(fields: dict[str, Any], expected: dict[str, int]) -> None:
    fanout = fan_out(MIXED, **fields)
    assert taken(fanout) == expected
    assert fanout.cursor == "c0003="
    for delivery in list(fanout.unsettled.values()):
        fanout.delivered(delivery)
    assert fanout.settled
    assert fanout.counts[Outcome.DELIVERED] == len(expected)


@pytest.mark.parametrize("fields", [{}, {"except_": EXCLUDED}, {"except_": EXCLUDED, "offset": 7}])
def test_members_share_at_most_three_bodies(fields: dict[str, Any]) -> None:
    members = [Member(each, 0, 1 + number % 2) for number, each in enumerate(ids(100))]
    deliveries = take_all(fan_out(members, **fields))
    assert len({id(delivery.body) for delivery in deliveries}) == (3 if "offset" in fields else 2)


def test_members_who_receive_nothing_have_no_outcome_even_if_it_expires() -> None:
    for fields, expired in (
        ({}, 4),
        ({"except_": EXCLUDED}, 2),
        ({"except_": EXCLUDED, "offset": 7}, 3),
        ({"presence": ARRIVES, "v": 2}, 2),
    ):
        fanout = fan_out(MIXED, **fields)
        fanout.expire()
        assert fanout.counts[Outcome.EXPIRED] == expired
        assert fanout.settled


def test_named_connections_that_expire_unread_are_counted_once() -> None:
    """A delivery in flight keeps the broadcast open, and a worker that takes it over reads on after the cursor."""
    fields: dict[str, Any] = {"connections": tuple(ids(250)), "except_": ("c0200=",)}
    fanout = fan_out(**fields)
    fanout.add_page([Member(each, None) for each in ids(100)], last=False, read_to="100")
    fanout.take()
    fanout.expire()
    assert fanout.counts[Outcome.EXPIRED] == 248
    checkpoint = fanout.checkpoint()
    assert (checkpoint.cursor, checkpoint.pending) == ("250", (("c0000=", None),))
    resumed = fan_out(start=checkpoint, **fields)
    resumed.expire()
    assert resumed.counts[Outcome.EXPIRED] == 1, "the one that was in flight"
    assert resumed.settled


def test_a_room_of_members_who_receive_nothing_is_settled_at_once() -> None:
    fanout = fan_out([Member(each, 0) for each in ids(3)], presence=ARRIVES, v=2)
    assert fanout.available
    assert fanout.take() is None
    assert fanout.settled
    assert not fanout.made_progress


def test_a_checkpoint_has_the_dialects_of_pending_members_and_a_resumed_fan_out_posts_the_same() -> None:
    fields: dict[str, Any] = {"except_": EXCLUDED, "offset": 7}
    fanout = fan_out(MIXED, **fields)
    before = {delivery.connection_id: delivery.body.payload for delivery in take_all(fanout)}
    checkpoint = fanout.checkpoint()
    assert checkpoint.v2 == ("c0001=", "c0002=")
    resumed = fan_out(start=checkpoint, **fields)
    assert {delivery.connection_id: delivery.body.payload for delivery in take_all(resumed)} == before
    assert len(set(before.values())) == 3
    assert resumed.checkpoint() == checkpoint


def test_a_checkpoint_without_v2_members_has_no_dialects() -> None:
    fanout = fan_out([Member(each, 0) for each in ids(3)])
    take_all(fanout)
    assert fanout.checkpoint().v2 == ()


def test_v2_members_miss_a_frame_that_is_too_large_without_a_post() -> None:
    fanout = fan_out(MIXED, data=HUGE)
    deliveries = take_all(fanout)
    assert {each.connection_id: each.body.frames for each in deliveries} == {"c0000=": V1, "c0003=": V1}
    [(first, outcome)] = fanout.missed
    assert (first.connection_id, first.body, outcome) == ("c0001=", TOO_LARGE, Outcome.REJECTED)
    assert fanout.counts[Outcome.REJECTED] == 1, "the other one"
    assert fanout.missed_to_store() == []
    for each in deliveries:
        fanout.delivered(each)
    assert fanout.missed_to_store() == fanout.missed
    assert not fanout.settled
    fanout.confirm_missed(fanout.missed_to_store())
    assert fanout.settled
    assert fanout.counts[Outcome.REJECTED] == 2


def test_the_first_member_who_misses_a_frame_that_is_too_large_is_pending_to_the_end() -> None:
    """So that a worker that resumes stores the dead letter, and not one for each worker."""
    fanout = fan_out(MIXED, data=HUGE)
    take_all(fanout)
    checkpoint = fanout.checkpoint()
    assert [each for each, _ in checkpoint.pending] == ["c0000=", "c0001=", "c0003="]
    assert checkpoint.v2 == ("c0001=",)
    fanout.stop()
    assert fanout.missed_to_store() == []
    resumed = fan_out([Member("c0004=", 0, V2), Member("c0005=", 0, V1)], start=checkpoint, data=HUGE)
    assert taken(resumed) == {"c0000=": V1, "c0003=": V1, "c0005=": V1}
    assert [each.connection_id for each, _ in resumed.missed] == ["c0001="]
    assert resumed.counts[Outcome.REJECTED] == 1


def test_other_missed_deliveries_are_stored_before_a_frame_that_is_too_large() -> None:
    members = [Member("a=", 0, V2), *(Member(each, 0) for each in ids(MAX_HELD_UP))]
    fanout = fan_out(members, data=HUGE)
    deliveries = take_all(fanout)
    for each in deliveries[:-1]:
        fanout.settle(each, Outcome.REJECTED)
    stored = fanout.missed_to_store()
    assert [delivery for delivery, _ in stored] == deliveries[:-1]
    fanout.confirm_missed(stored)
    assert [delivery.body for delivery, _ in fanout.missed] == [TOO_LARGE]
    assert fanout.missed_to_store() == []
    fanout.delivered(deliveries[-1])
    assert fanout.missed_to_store() == fanout.missed


def test_members_who_miss_a_frame_that_is_too_large_hold_up_no_others_and_do_not_exceed_the_window() -> None:
    """The first of them comes when one place of the window is left."""
    dialects = [V1] * (WINDOW - 1) + [V2] * 3 * WINDOW + [V1]
    fanout = fan_out([Member(f"c{n:05d}=", 0, dialect) for n, dialect in enumerate(dialects)], data=HUGE)
    assert len(take_all(fanout)) == WINDOW - 1
    assert len(fanout.unsettled) == WINDOW
    fanout.delivered(next(iter(fanout.unsettled.values())))
    assert [each.connection_id for each in take_all(fanout)] == [f"c{len(dialects) - 1:05d}="]
    assert fanout.counts[Outcome.REJECTED] == 3 * WINDOW - 1
    assert len(fanout.checkpoint().pending) == WINDOW


def test_the_memory_of_every_body_is_counted() -> None:
    members = [Member("a=", 0, V1), Member("b=", 0, V2)]
    sizes = []
    for data in ("x", "x" * 10_001):
        fanout = fan_out(members, data=data)
        take_all(fanout)
        sizes.append(fanout.held_bytes)
    assert sizes[1] - sizes[0] == 20_000
