"""Route selection expressions: what they may be, and which route a message selects."""

import pytest

from gatecast.emulator.selection import ACTION, Selection


@pytest.mark.parametrize(
    ("expression", "message", "key"),
    [
        ("$request.body.action", '{"action": "join"}', "join"),
        ("${request.body.action}", '{"action": "join"}', "join"),
        ("$request.body.message.kind", '{"message": {"kind": "join"}}', "join"),
        ("${request.body.service}-${request.body.action}", '{"service": "chat", "action": "join"}', "chat-join"),
        ("${request.body.version}-beta", '{"version": 2}', "2-beta"),
        (r"\$request.body.x/$request.body.action", '{"action": "join"}', "$request.body.x/join"),
        ("$request.body.action", '{"action": true}', "true"),
        ("$request.body.action", '{"action": ["join"]}', None),
        ("$request.body.action", '{"action": null}', None),
        ("$request.body.a.b", '{"a": "text"}', None),
        ("${request.body.service}-${request.body.action}", '{"action": "join"}', None),
        ("$request.body.action", "no JSON", None),
        ("$request.body.action", "[1]", None),
        ("$request.body.action", "[" * 100_000, None),
    ],
)
def test_a_message_yields_a_key(expression: str, message: str, key: str | None) -> None:
    assert Selection.parse(expression).key(message) == key


@pytest.mark.parametrize(
    "expression", ["", "action", "$default", "$request.header.x", "$request.body", "$request.body.", "${request.body.a"]
)
def test_other_expressions_are_rejected(expression: str) -> None:
    with pytest.raises(ValueError, match=r"expected an expression such as \$request\.body\.action"):
        Selection.parse(expression)


def test_the_usual_expression_is_the_default() -> None:
    assert Selection.parse("$request.body.action") == ACTION
