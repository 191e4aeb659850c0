"""Dialects and tokens among the subprotocols that clients offer."""

from typing import Any

import pytest

from routes.subprotocols import chosen_dialect, chosen_subprotocol, offered_subprotocols, without_dialects

HEADER = "Sec-WebSocket-Protocol"


@pytest.mark.parametrize(
    ("fields", "offered"),
    [
        ({}, []),
        ({"headers": None, "multiValueHeaders": None}, []),
        ({"headers": {"Host": "x"}}, []),
        ({"headers": {HEADER: "chat"}}, ["chat"]),
        ({"headers": {"sec-websocket-protocol": "gatecast.v1,a.b.c"}}, ["gatecast.v1", "a.b.c"]),
        ({"headers": {HEADER: " , gatecast.v1 ,, "}}, ["gatecast.v1"]),
        ({"headers": {HEADER: "b"}, "multiValueHeaders": {HEADER: ["a", "b"]}}, ["a", "b"]),
        ({"multiValueHeaders": {HEADER: ["a, b", "c"]}}, ["a", "b", "c"]),
    ],
)
def test_the_subprotocols_offered(fields: dict[str, Any], offered: list[str]) -> None:
    assert offered_subprotocols(fields) == offered
    assert chosen_subprotocol(fields) == ("gatecast.v1" if "gatecast.v1" in offered else None)


@pytest.mark.parametrize(
    ("offered", "chosen", "dialect"),
    [
        ("gatecast.v2", "gatecast.v2", 2),
        ("gatecast.v2, a.b.c", "gatecast.v2", 2),
        ("gatecast.v2, gatecast.v1, a.b.c", "gatecast.v2", 2),
        ("gatecast.v1, gatecast.v2", "gatecast.v2", 2),
        ("gatecast.v1, a.b.c", "gatecast.v1", 1),
        ("a.b.c, gatecast.v1", "gatecast.v1", 1),
        ("gatecast.v3, gatecast.V2, a.b.c", None, 1),
        ("", None, 1),
    ],
)
def test_the_newest_offered_dialect_is_chosen_and_never_a_token(offered: str, chosen: str | None, dialect: int) -> None:
    event = {"headers": {HEADER: offered}}
    assert chosen_subprotocol(event) == chosen
    assert chosen_dialect(event) == dialect


@pytest.mark.parametrize(
    ("offered", "behind"),
    [
        ([], []),
        (["gatecast.v2"], []),
        (["gatecast.v2", "gatecast.v1"], []),
        (["gatecast.v2", "gatecast.v1", "t"], ["t"]),
        (["gatecast.v1", "t", "gatecast.v2"], ["t", "gatecast.v2"]),
        (["t", "gatecast.v1"], ["t", "gatecast.v1"]),
        (["gatecast.v1", "gatecast.v1"], ["gatecast.v1"]),
    ],
)
def test_what_is_offered_behind_the_dialects(offered: list[str], behind: list[str]) -> None:
    assert without_dialects(offered) == behind
