"""No schedule of workers that append to a room's history breaks the offsets, or leaves a gap at a client's seam.

`tests.history_model` describes what is explored. The simpler ways at the end show why the real one is needed: each of
them fails in some schedule.
"""

from collections import Counter

import pytest

from tests.history_model import Job, Variant, Work, explore

ZOMBIE = Work((Job("A", 1),), 100)


def violations(found: Counter[str]) -> set[str]:
    return set(found) - {"visited", "ended"}


@pytest.mark.parametrize(
    "works",
    [
        pytest.param(
            (ZOMBIE, Work((Job("A", 2),), 103), Work((Job("B", 1),), 101)), id="a zombie, its successor, another"
        ),
        pytest.param((ZOMBIE, Work((Job("A", 2), Job("B", 1)), 103)), id="the successor shares its transaction"),
        pytest.param(
            (ZOMBIE, Work((Job("A", 2), Job("B", 1)), 103, crashes=1, losses=1)), id="with a crash and a lost response"
        ),
        pytest.param(
            (Work((Job("A", 1), Job("C", 1)), 100), Work((Job("A", 2), Job("B", 1)), 103)),
            id="the zombie shares its transaction",
        ),
        pytest.param(
            (Work((Job("A", 1),), 104, losses=1), Work((Job("A", 2),), 103), Work((Job("B", 1),), 101)),
            id="the zombie loses a response",
        ),
    ],
)
def test_offsets_are_dense_and_unique_and_no_message_is_missing_at_the_seam(works: tuple[Work, ...]) -> None:
    found = explore(works)
    assert not violations(found)
    assert found["ended"]


SUCCESSOR = (ZOMBIE, Work((Job("A", 2),), 103))
ONE_CRASH = (Work((Job("A", 1),), 100, crashes=1), Work((Job("B", 1),), 101))


@pytest.mark.parametrize(
    ("variant", "works", "violation"),
    [
        (Variant(appends_before_paging=False), SUCCESSOR, "missing at the client"),
        (Variant(joins_first=False), SUCCESSOR, "missing at the client"),
        (Variant(is_transaction=False), ONE_CRASH, "gap"),
        (Variant(checks_claim=False), SUCCESSOR, "two offsets"),
        (Variant(checks_head=False), ONE_CRASH, "offset used twice"),
        (Variant(keeps_offset=False), ONE_CRASH, "two offsets"),
    ],
    ids=["append after paging", "query before joining", "count, then put", "any claim", "any head", "forgotten offset"],
)
def test_simpler_ways_violate_the_guarantees(variant: Variant, works: tuple[Work, ...], violation: str) -> None:
    assert violation in violations(explore(works, variant))
