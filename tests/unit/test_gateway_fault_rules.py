"""Which calls a fault strikes: repeatably, by share, by connection."""

import msgspec
import pytest

from local.gateway.faults import HALF_AN_ANSWER, NOT_JSON, THROTTLED, Answer, Delay, Faults, LostDisconnect, Rule, Stall

IDS = [f"connection-{number}=" for number in range(2_000)]


def struck(faults: Faults, ids: list[str] = IDS) -> set[str]:
    return {each for each in ids if faults.strike("POST", each)}


def test_no_rules_no_faults() -> None:
    assert struck(Faults()) == set()


@pytest.mark.parametrize("of", ["calls", "connections"])
def test_a_share_strikes_about_that_many(of: str) -> None:
    rule = msgspec.convert({"fault": {"kind": "Delay", "seconds": 1}, "share": 0.1, "of": of}, Rule)
    assert 150 <= len(struck(Faults([rule]))) <= 250


def test_the_same_seed_strikes_the_same_calls_in_any_order() -> None:
    rules = [Rule(fault=THROTTLED, share=0.2)]
    first, second = Faults(rules, seed=7), Faults(rules, seed=7)
    assert struck(first) == struck(second, IDS[::-1])
    assert struck(Faults(rules, seed=7)) != struck(Faults(rules, seed=8))


def test_a_share_of_connections_strikes_them_always() -> None:
    faults = Faults([Rule(fault=THROTTLED, share=0.1, of="connections")])
    assert struck(faults) == struck(faults) == struck(faults)


def test_a_share_of_calls_strikes_others_each_time() -> None:
    faults = Faults([Rule(fault=THROTTLED, share=0.5)])
    assert struck(faults) != struck(faults)


def test_rules_can_name_connections_methods_and_an_end() -> None:
    faults = Faults(
        [
            Rule(fault=Delay(1.0), only=frozenset({"a="}), at_most=2),
            Rule(fault=NOT_JSON, methods=frozenset({"GET"})),
        ]
    )
    assert faults.strike("POST", "b=") is None
    assert [faults.strike("POST", "a=") for _ in range(3)] == [Delay(1.0), Delay(1.0), None]
    assert faults.strike("GET", "b=") is NOT_JSON


def test_the_first_rule_that_strikes_decides() -> None:
    assert Faults([Rule(fault=THROTTLED), Rule(fault=NOT_JSON)]).strike("POST", "a=") is THROTTLED


def test_rules_can_be_replaced() -> None:
    faults = Faults([Rule(fault=THROTTLED)])
    faults.replace([])
    assert faults.strike("POST", "a=") is None


def test_lost_disconnects_are_no_matter_of_calls() -> None:
    faults = Faults([Rule(fault=LostDisconnect(), only=frozenset({"a="}))])
    assert faults.strike("POST", "a=") is None
    assert faults.loses_disconnect("a=")
    assert not faults.loses_disconnect("b=")


def test_rules_survive_json() -> None:
    rules = [
        Rule(fault=Answer(status=500, body="half", delivers=True), only=frozenset({"a="})),
        Rule(fault=HALF_AN_ANSWER, share=0.5, of="connections", at_most=3),
        Rule(fault=Stall(seconds=2.0)),
    ]
    assert msgspec.json.decode(msgspec.json.encode(rules), type=list[Rule]) == rules


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_a_share(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        Rule(fault=THROTTLED, share=share)
