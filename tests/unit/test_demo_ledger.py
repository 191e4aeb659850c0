"""Which receipts count as expected, received, missing and duplicate."""

import math

from local.demo.ledger import IN_TRANSIT_SECONDS, Ledger


def test_all_clients_received() -> None:
    ledger = Ledger()
    ledger.published(0, {1, 2, 3}, at=10.0)
    assert (ledger.due(), ledger.outstanding()) == (3, 3)
    for client in (1, 2, 3):
        ledger.received(0, client, at=10.0 + client)
    tally = ledger.tally()
    assert (tally.broadcasts, tally.expected, tally.received, tally.missing, tally.duplicates) == (1, 3, 3, 0, 0)
    assert tally.latencies == (1.0, 2.0, 3.0)
    assert (ledger.due(), ledger.outstanding()) == (3, 0)


def test_connected_client_without_receipt_is_missing() -> None:
    ledger = Ledger()
    ledger.published(0, {1, 2}, at=10.0)
    ledger.received(0, 1, at=11.0)
    assert ledger.outstanding() == 1
    assert ledger.tally().missing == 1


def test_second_receipt_is_only_a_duplicate() -> None:
    ledger = Ledger()
    ledger.published(0, {1, 2}, at=10.0)
    ledger.received(0, 1, at=11.0)
    ledger.received(0, 1, at=12.0)
    tally = ledger.tally()
    assert (tally.received, tally.missing, tally.duplicates) == (1, 1, 1)
    assert tally.latencies == (1.0,)


def test_receipt_outside_the_audience_is_a_stray() -> None:
    ledger = Ledger()
    ledger.published(0, {1}, at=10.0)
    ledger.received(0, 1, at=11.0)
    ledger.received(0, 2, at=11.0)
    tally = ledger.tally()
    assert (tally.expected, tally.received, tally.strays) == (1, 1, 1)


def test_no_receipt_is_expected_from_a_client_that_disconnected_before_the_last_receipt() -> None:
    ledger = Ledger()
    ledger.published(0, {1, 2, 3}, at=10.0)
    ledger.received(0, 1, at=11.0)
    ledger.disconnected(2, at=11.5)
    assert ledger.outstanding() == 1
    ledger.received(0, 3, at=12.0)
    assert ledger.outstanding() == 0
    assert ledger.tally().expected == 2


def test_delivery_in_transit_to_a_disconnected_client_is_not_expected() -> None:
    for disconnected_at, expected in ((12.0 + IN_TRANSIT_SECONDS, 1), (12.1 + IN_TRANSIT_SECONDS, 2)):
        ledger = Ledger()
        ledger.published(0, {1, 2}, at=10.0)
        ledger.received(0, 1, at=12.0)
        ledger.disconnected(2, at=disconnected_at)
        assert ledger.tally().expected == expected


def test_no_receipt_is_expected_from_a_disconnected_client_if_there_were_none() -> None:
    ledger = Ledger()
    ledger.published(0, {1, 2}, at=10.0)
    ledger.disconnected(2, at=1_000.0)
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
