"""In no schedule does a broadcast end without a receipt, with different ones, or with one that is not true.

`tests.receipt_model` describes what is explored. The simpler ways at the end show why the real one is needed: each of
them fails in some schedule.
"""

from collections import Counter

import pytest

from tests.receipt_model import Events, Scene, Variant, explore

WHOLE = Scene({"": (0, 1)}, slow=frozenset({1}))
FICKLE = Scene({"": (0,)}, fickle=frozenset({0}))
ONE_SHARD = Scene({"": (), "s0": (0,)})
SPLIT = Scene({"": (), "s0": (0,), "s1": (1,)})
SPLIT_AND_SLOW = Scene({"": (), "s0": (0,), "s1": (1,)}, slow=frozenset({1}))


def violations(found: Counter[str]) -> set[str]:
    return set(found) - {"visited", "ended"}


@pytest.mark.parametrize(
    ("scene", "events"),
    [
        (WHOLE, Events()),
        (WHOLE, Events(crashes=1, late_writes=1)),
        (WHOLE, Events(crashes=2)),
        (WHOLE, Events(stalls=1)),
        (FICKLE, Events(crashes=1, stalls=1, late_writes=1)),
        (ONE_SHARD, Events(crashes=1, stalls=1)),
        (SPLIT, Events(crashes=1)),
        (SPLIT_AND_SLOW, Events()),
    ],
    ids=str,
)
def test_every_broadcast_ends_in_equal_and_true_receipts(scene: Scene, events: Events) -> None:
    found = explore(scene, events)
    assert not violations(found)
    assert found["ended"]


@pytest.mark.parametrize(
    ("variant", "scene", "events", "violation"),
    [
        (Variant(expects_first=False), WHOLE, Events(), "none"),
        (Variant(stores_first=False), WHOLE, Events(crashes=1), "none"),
        (Variant(stores_end=False), FICKLE, Events(crashes=1), "different"),
        (Variant(ends_once=False), WHOLE, Events(crashes=1), "false"),
        (Variant(expects_itself=False), WHOLE, Events(), "different"),
        (Variant(keeps_begin=False), ONE_SHARD, Events(crashes=1), "none"),
        (Variant(numbers_writes=False), WHOLE, Events(crashes=1, late_writes=1), "none"),
    ],
    ids=["send first", "expect first", "end unstored", "end twice", "without itself", "begin again", "late writes"],
)
def test_simpler_ways_violate_the_guarantees(variant: Variant, scene: Scene, events: Events, violation: str) -> None:
    assert violation in violations(explore(scene, events, variant))
