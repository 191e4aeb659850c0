"""No schedule of two messages with one id loses anybody, or repeats more than crashes and stalls explain.

`tests.claim_model` says what is explored. The simpler rules at the end are what it is for: each fails in some schedule.
"""

from collections import Counter

import pytest

from tests.claim_model import Events, Variant, explore
from worker.decisions.claims import Claimant, NotClaimed, Resumption, Standing, judge


def wrong(found: Counter[str]) -> set[str]:
    return set(found) - {"visited", "ended"}


@pytest.mark.parametrize(
    "events",
    [
        {},
        {"moves": 1},
        {"outages": 1},
        {"crashes": 1, "moves": 1, "outages": 1},
        {"crashes": 2, "moves": 1},
        {"crashes": 1, "stalls": 1},
        {"stalls": 1, "moves": 1},
        {"stalls": 1, "outages": 1},
    ],
    ids=str,
)
def test_nothing_is_lost_or_repeated_or_stuck(events: dict[str, int]) -> None:
    found = explore(Events(**events))
    assert not wrong(found)
    assert found["ended"]


def other_messages_are_duplicates(standing: Standing, claimant: Claimant, now: float) -> Resumption | NotClaimed:
    verdict = judge(standing, claimant, now)
    other = standing.message_id != claimant.message_id
    return NotClaimed.COMPLETED if other else verdict


def other_messages_wait_for_ever(standing: Standing, claimant: Claimant, now: float) -> Resumption | NotClaimed:
    verdict = judge(standing, claimant, now)
    other = standing.message_id != claimant.message_id
    return NotClaimed.HELD if other and isinstance(verdict, Resumption) else verdict


def other_messages_take_over_at_once(standing: Standing, claimant: Claimant, now: float) -> Resumption | NotClaimed:
    verdict = judge(standing, claimant, now)
    return Resumption.FROM_CHECKPOINT if verdict is NotClaimed.HELD else verdict


@pytest.mark.parametrize(
    ("variant", "events", "fault"),
    [
        (Variant(rule=other_messages_are_duplicates), {"crashes": 1, "moves": 1}, "lost"),
        (Variant(rule=other_messages_wait_for_ever), {"crashes": 1, "moves": 1}, "stuck"),
        (Variant(rule=other_messages_take_over_at_once), {}, "repeated"),
        (Variant(completes=False), {}, "repeated"),
        (Variant(renews_before_posting=False), {"outages": 1}, "repeated"),
    ],
    ids=["duplicates", "wait for ever", "at once", "no completion", "no renewal"],
)
def test_simpler_rules_fail(variant: Variant, events: dict[str, int], fault: str) -> None:
    assert fault in wrong(explore(Events(**events), variant))
