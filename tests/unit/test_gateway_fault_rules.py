"""Which calls a fault affects: reproducibly, by share, by connection."""

import msgspec
import pytest

from gatecast.emulator.faults import (
    NOT_JSON,
    THROTTLED,
    TRUNCATED_RESPONSE,
    CannedResponse,
    Delay,
    Faults,
    LostDisconnect,
    Rule,
    Stall,
)

IDS = [f"connection-{number}=" for number in range(2_000)]


def affected(faults: Faults, ids: list[str] = IDS) -> set[str]:
    return {each for each in ids if faults.next_fault("POST", each)}


def test_no_rules_no_faults() -> None:
    assert affected(Faults()) == set()


@pytest.mark.parametrize("of", ["calls", "connections"])
def test_share_affects_about_that_many(of: str) -> None:
    rule = msgspec.convert({"fault": {"kind": "Delay", "seconds": 1}, "share": 0.1, "of": of}, Rule)
    assert 150 <= len(affected(Faults([rule]))) <= 250


def test_same_seed_affects_the_same_calls_in_any_order() -> None:
    rules = [Rule(fault=THROTTLED, share=0.2)]
    first, second = Faults(rules, seed=7), Faults(rules, seed=7)
    assert affected(first) == affected(second, IDS[::-1])
    assert affected(Faults(rules, seed=7)) != affected(Faults(rules, seed=8))


def test_share_of_connections_affects_all_their_calls() -> None:
    faults = Faults([Rule(fault=THROTTLED, share=0.1, of="connections")])
    assert affected(faults) == affected(faults) == affected(faults)


def test_share_of_calls_varies_from_call_to_call() -> None:
    faults = Faults([Rule(fault=THROTTLED, share=0.5)])
    assert affected(faults) != affected(faults)


def test_rules_can_restrict_connections_methods_and_count() -> None:
    faults = Faults(
        [
            Rule(fault=Delay(1.0), only=frozenset({"a="}), max_count=2),
            Rule(fault=NOT_JSON, methods=frozenset({"GET"})),
        ]
    )
    assert faults.next_fault("POST", "b=") is None
    assert [faults.next_fault("POST", "a=") for _ in range(3)] == [Delay(1.0), Delay(1.0), None]
    assert faults.next_fault("GET", "b=") is NOT_JSON


def test_the_first_applicable_rule_decides() -> None:
    assert Faults([Rule(fault=THROTTLED), Rule(fault=NOT_JSON)]).next_fault("POST", "a=") is THROTTLED


def test_rules_can_be_replaced() -> None:
    faults = Faults([Rule(fault=THROTTLED)])
    faults.replace([])
    assert faults.next_fault("POST", "a=") is None


def test_lost_disconnects_do_not_affect_calls() -> None:
    faults = Faults([Rule(fault=LostDisconnect(), only=frozenset({"a="}))])
    assert faults.next_fault("POST", "a=") is None
    assert faults.loses_disconnect("a=")
    assert not faults.loses_disconnect("b=")


def test_rules_round_trip_through_json() -> None:
    rules = [
        Rule(fault=CannedResponse(status=500, body="half", delivers=True), only=frozenset({"a="})),
        Rule(fault=TRUNCATED_RESPONSE, share=0.5, of="connections", max_count=3),
        Rule(fault=Stall(seconds=2.0)),
    ]
    assert msgspec.json.decode(msgspec.json.encode(rules), type=list[Rule]) == rules


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_share_must_be_between_0_and_1(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        Rule(fault=THROTTLED, share=share)
