"""What a fan-out has counted: by outcome, for its receipt, and for the bill."""

import sys
from collections import Counter
from types import FrameType
from typing import Any

import pytest
from msgspec import UNSET

from gatecast import Broadcast
from gatecast.broadcast import Close
from gatecast.frames import V1, V2
from tests.pipeline_doubles import ids
from worker.decisions.checkpoint import Checkpoint
from worker.decisions.outcome import Outcome
from worker.decisions.receipts import ReceiptState, Sums
from worker.delivery.fanout import Delivery, Fanout
from worker.delivery.kicks import KickFanout
from worker.ports import Member

LONG = "x" * 32_768
"""As it is, one unit; in a frame, two."""


def fan_out(members: int = 4, *, start: Checkpoint | None = None, frames: int = V1, **fields: Any) -> Fanout:
    fields.setdefault("room", "lobby")
    if "close" not in fields:
        fields.setdefault("data", "hello")
    broadcast = Broadcast(id="one", published_at_ms=1_700_000_000_000, **fields)
    fanout = (KickFanout if broadcast.close else Fanout)(
        broadcast,
        start or Checkpoint(),
        lambda: 0.0,
        order=(0, 0),
        prior_rejections=None,
        totals=dict.fromkeys(Outcome, 0),
        gone=lambda _: None,
    )
    if "connections" not in fields:
        fanout.add_page([Member(each, 0, frames) for each in ids(members)], last=True)
    return fanout


def take_all(fanout: Fanout) -> dict[str, Delivery]:
    taken = {}
    while (delivery := fanout.take()) is not None:
        taken[delivery.connection_id] = delivery
    return taken


def test_outcomes_of_earlier_workers_and_of_this_one_add_up() -> None:
    before = Sums(100, 1, 2, 3, 4, 500, 200)
    pending = tuple((each, 0) for each in ids(3))
    fanout = fan_out(start=Checkpoint("c0002=", pending, receipt=ReceiptState(before)))
    delivered, gone, missed, *_ = take_all(fanout).values()
    fanout.delivered(delivered)
    fanout.outcomes.failed_posts += 2
    fanout.settle(gone, Outcome.GONE)
    fanout.settle(missed, Outcome.UNDELIVERED)
    assert fanout.outcomes.sums == before.plus(Sums(1, 1, 0, 0, 0, 3, 1)), "a missed one counts once it is stored"
    fanout.confirm_missed(fanout.missed_to_store() or fanout.missed)
    assert fanout.outcomes.sums == before.plus(Sums(1, 1, 0, 0, 1, 3, 1))
    assert fanout.counts[Outcome.DELIVERED] == fanout.counts[Outcome.GONE] == fanout.counts[Outcome.UNDELIVERED] == 1


def test_those_who_are_being_handed_off_are_not_delivered_here() -> None:
    state = ReceiptState(handed_off=("c0001=",))
    fanout = fan_out(0, start=Checkpoint("c0009=", (("c0000=", 0), ("c0001=", 0)), receipt=state))
    assert "c0001=" not in take_all(fanout)
    [delivery] = fanout.handed_off
    assert delivery.connection_id == "c0001="
    assert ("c0001=", 0) in fanout.checkpoint().pending
    fanout.expire()
    assert fanout.outcomes.sums.expired == 0, "the remainder counts it"
    fanout.hand_off(fanout.handed_off)
    assert ("c0001=", 0) not in fanout.checkpoint().pending


@pytest.mark.parametrize(("frames", "units"), [(V1, 1), (V2, 2)])
def test_each_dialect_is_billed_for_what_it_gets(frames: int, units: int) -> None:
    fanout = fan_out(3, data=LONG, frames=frames)
    for delivery in take_all(fanout).values():
        fanout.delivered(delivery)
    assert fanout.outcomes.billed_units == 3 * units


def test_a_kick_counts_each_connection_once_and_bills_its_frame_only() -> None:
    fanout = fan_out(2, v=2, close=Close(code="bye", retry=False), frames=V2)
    for delivery in take_all(fanout).values():
        fanout.delivered(delivery)
    assert fanout.counts[Outcome.DELIVERED] == 0
    for delivery in take_all(fanout).values():
        fanout.delivered(delivery)
    assert fanout.counts[Outcome.DELIVERED] == 2
    assert fanout.outcomes.sums == Sums(delivered=2, posts=2, billed_units=2)


def test_named_connections_that_are_not_read_any_more_have_expired() -> None:
    fanout = fan_out(room=UNSET, connections=tuple(ids(6)), except_=("c0005=",), receipt=True)
    fanout.add_page([Member(each, None, V1) for each in ids(2)], last=False)
    [first, _] = take_all(fanout).values()
    fanout.delivered(first)
    fanout.expire()
    assert fanout.counts[Outcome.EXPIRED] == 3
    assert fanout.settled is False, "one is in flight"


def steps(fanout: Fanout) -> int:
    """The bytecodes that it takes to deliver all members."""
    counted: Counter[str] = Counter()

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        if not frame.f_code.co_filename.endswith("worker/delivery/fanout.py"):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        counted[event] += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        while (delivery := fanout.take()) is not None:
            fanout.delivered(delivery)
    finally:
        sys.settrace(before)
    assert fanout.settled
    return counted["opcode"]


def test_a_receipt_costs_no_delivery_anything() -> None:
    without = steps(fan_out(900))
    assert steps(fan_out(900, start=Checkpoint(receipt=ReceiptState()), receipt=True)) == without
    assert without / 900 < 140, "what a delivery costs here"
