"""No schedule of two messages with one id loses a member, or repeats more than crashes and stalls explain.

`tests.claim_model` describes what is explored. The simpler rules at the end show why the real rule is needed: each of
them fails in some schedule.
"""

from collections import Counter

import pytest

from tests.claim_model import Events, Variant, explore
from worker.decisions.claims import Claimant, NotClaimed, Resumption, Standing, decide


def violations(found: Counter[str]) -> set[str]:
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
    assert not violations(found)
    assert found["ended"]


def other_messages_are_duplicates(standing: Standing, claimant: Claimant, now: float) -> Resumption | NotClaimed:
    verdict = decide(standing, claimant, now)
    other = standing.message_id != claimant.message_id
    return NotClaimed.COMPLETED if other else verdict


def other_messages_wait_forever(standing: Standing, claimant: Claimant, now: float) -> Resumption | NotClaimed:
    verdict = decide(standing, claimant, now)
    other = standing.message_id != claimant.message_id
    return NotClaimed.HELD if other and isinstance(verdict, Resumption) else verdict


def other_messages_take_over_at_once(standing: Standing, claimant: Claimant, now: float) -> Resumption | NotClaimed:
    verdict = decide(standing, claimant, now)
    return Resumption.FROM_CHECKPOINT if verdict is NotClaimed.HELD else verdict


@pytest.mark.parametrize(
    ("variant", "events", "violation"),
    [
        (Variant(rule=other_messages_are_duplicates), {"crashes": 1, "moves": 1}, "lost"),
        (Variant(rule=other_messages_wait_forever), {"crashes": 1, "moves": 1}, "stuck"),
        (Variant(rule=other_messages_take_over_at_once), {}, "repeated"),
        (Variant(completes=False), {}, "repeated"),
        (Variant(renews_before_posting=False), {"outages": 1}, "repeated"),
    ],
    ids=["duplicates", "wait forever", "at once", "no completion", "no renewal"],
)
def test_simpler_rules_violate_the_guarantees(variant: Variant, events: dict[str, int], violation: str) -> None:
    assert violation in violations(explore(Events(**events), variant))
