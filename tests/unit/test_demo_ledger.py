"""What counts as expected, received, missing and late."""

import math

from local.demo.ledger import ON_ITS_WAY_SECONDS, Ledger


def test_everybody_received() -> None:
    ledger = Ledger()
    ledger.published(0, {1, 2, 3}, at=10.0)
    assert (ledger.due(), ledger.outstanding()) == (3, 3)
    for client in (1, 2, 3):
        ledger.received(0, client, at=10.0 + client)
    tally = ledger.tally()
    assert (tally.broadcasts, tally.expected, tally.received, tally.missing, tally.duplicates) == (1, 3, 3, 0, 0)
    assert tally.latencies == (1.0, 2.0, 3.0)
    assert (ledger.due(), ledger.outstanding()) == (3, 0)


def test_one_that_stayed_and_received_nothing_is_missing() -> None:
    ledger = Ledger()
    ledger.published(0, {1, 2}, at=10.0)
    ledger.received(0, 1, at=11.0)
    assert ledger.outstanding() == 1
    assert ledger.tally().missing == 1


def test_a_second_receipt_is_a_duplicate_and_nothing_else() -> None:
    ledger = Ledger()
    ledger.published(0, {1, 2}, at=10.0)
    ledger.received(0, 1, at=11.0)
    ledger.received(0, 1, at=12.0)
    tally = ledger.tally()
    assert (tally.received, tally.missing, tally.duplicates) == (1, 1, 1)
    assert tally.latencies == (1.0,)


def test_a_receipt_of_somebody_else_is_a_stray() -> None:
    ledger = Ledger()
    ledger.published(0, {1}, at=10.0)
    ledger.received(0, 1, at=11.0)
    ledger.received(0, 2, at=11.0)
    tally = ledger.tally()
    assert (tally.expected, tally.received, tally.strays) == (1, 1, 1)


def test_nothing_is_expected_of_one_that_left_before_the_last_receipt() -> None:
    ledger = Ledger()
    ledger.published(0, {1, 2, 3}, at=10.0)
    ledger.received(0, 1, at=11.0)
    ledger.left(2, at=11.5)
    assert ledger.outstanding() == 1
    ledger.received(0, 3, at=12.0)
    assert ledger.outstanding() == 0
    assert ledger.tally().expected == 2


def test_what_was_on_its_way_to_one_that_left_is_not_expected() -> None:
    for left_at, expected in ((12.0 + ON_ITS_WAY_SECONDS, 1), (12.1 + ON_ITS_WAY_SECONDS, 2)):
        ledger = Ledger()
        ledger.published(0, {1, 2}, at=10.0)
        ledger.received(0, 1, at=12.0)
        ledger.left(2, at=left_at)
        assert ledger.tally().expected == expected


def test_nothing_is_expected_of_one_that_left_when_nobody_received_anything() -> None:
    ledger = Ledger()
    ledger.published(0, {1, 2}, at=10.0)
    ledger.left(2, at=1_000.0)
    tally = ledger.tally()
    assert (tally.expected, tally.missing) == (1, 1)


def test_percentiles() -> None:
    ledger = Ledger()
    assert math.isnan(ledger.tally().percentile(50))
    ledger.published(0, range(100), at=0.0)
    for client in range(100):
        ledger.received(0, client, at=float(client + 1))
    tally = ledger.tally()
    assert [tally.percentile(percent) for percent in (1, 50, 99, 100)] == [1.0, 50.0, 99.0, 100.0]
