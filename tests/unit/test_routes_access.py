"""What is a grant, and which rooms it covers."""

from typing import Any

import pytest

from routes.access import Access, AuthorizerContext, InvalidContext, covers, is_grant


@pytest.mark.parametrize("text", ["lobby", "a/*", "a/b/*", "!", "#", "a@b", "a/", "//*", "r" * 100, "p" * 98 + "/*"])
def test_valid_grants(text: str) -> None:
    assert is_grant(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "*", "a*", "a/**", "*/b", "a/*/b", "/*", "**", "@", "@all", "@*", "@/*", "@user/*", "@user/bob"),
        *("two words", "zoë", "a\0b", "lobby\n", " lobby", "r" * 101, "p" * 99 + "/*", "\ud800"),
    ],
)
def test_invalid_grants(text: str) -> None:
    assert not is_grant(text)


@pytest.mark.parametrize(
    ("grant", "room", "covered"),
    [
        ("lobby", "lobby", True),
        ("lobby", "lobby2", False),
        ("lobby", "Lobby", False),
        ("lobby", "lobb", False),
        ("a/*", "a/b", True),
        ("a/*", "a/b/c", True),
        ("a/*", "a//", True),
        ("a/*", "a/*", False),
        ("a/*", "a/b*c", False),
        ("a*b", "a*b", False),
        ("a/*", "a/", False),
        ("a/*", "a", False),
        ("a/*", "ab", False),
        ("a/*", "ab/c", False),
        ("a/*", "A/b", False),
        ("a/b/*", "a/b", False),
        ("a/b/*", "a/c", False),
        ("a/", "a/b", False),
        ("@all", "@all", False),
        ("@user/*", "@user/bob", False),
        ("*", "lobby", False),
        ("*", "@all", False),
    ],
)
def test_what_a_grant_covers(grant: str, room: str, covered: bool) -> None:
    assert covers([grant], room) is covered
    assert covers(["other", grant], room) is covered


def test_without_grants_nothing_is_covered() -> None:
    assert not covers([], "lobby")


def test_context_is_flat_and_round_trips() -> None:
    access = Access(join=("lobby", "chat/*"), publish=("chat/*",), expires_at=1_700_000_000)
    context = AuthorizerContext.from_access("alice", access)
    assert context.flat() == {
        "user": "alice",
        "join": "lobby chat/*",
        "publish": "chat/*",
        "expiresAt": "1700000000",
    }
    assert context.access() == access


def test_empty_grants_are_omitted_from_the_context() -> None:
    context = AuthorizerContext.from_access("alice", Access(join=(), publish=(), expires_at=1))
    assert context.flat() == {"user": "alice", "expiresAt": "1"}
    assert context.access() == Access(join=(), publish=(), expires_at=1)


def test_only_the_newer_dialect_is_in_the_context() -> None:
    access = Access(join=(), publish=(), expires_at=1)
    assert AuthorizerContext.from_access("alice", access, 1).flat() == {"user": "alice", "expiresAt": "1"}
    context = AuthorizerContext.from_access("alice", access, 2).flat()
    assert context == {"user": "alice", "expiresAt": "1", "frames": "2"}
    assert AuthorizerContext.from_event(context).dialect == 2
    assert AuthorizerContext.from_event({"user": "alice"}).dialect == 1


def test_context_without_expiry_has_no_access() -> None:
    assert AuthorizerContext(user="alice", join="lobby").access() is None


@pytest.mark.parametrize("text", ["soon", "1e9", "9" * 16, "1_000", " 1", "1 ", "1.", ".5", "true", "inf", "\u0661"])
def test_expiry_that_is_no_number_is_rejected(text: str) -> None:
    with pytest.raises(InvalidContext, match=r"^expiresAt of the authorizer's context: expected seconds"):
        AuthorizerContext(user="alice", expires_at=text).access()


@pytest.mark.parametrize(("value", "expires_at"), [("7", 7), (7, 7), (7.0, 7), (7.75, 7), ("7.75", 7), ("-7", -7)])
def test_expiry_may_be_a_number(value: object, expires_at: int) -> None:
    access = AuthorizerContext.from_event({"expiresAt": value, "join": "lobby"}).access()
    assert access == Access(join=("lobby",), publish=(), expires_at=expires_at)


@pytest.mark.parametrize(
    ("value", "user"),
    [
        ("alice", "alice"),
        (42, "42"),
        (42.0, "42"),
        (-1, "-1"),
        (1.5, "1.5"),
        (0, "0"),
        (True, "true"),
        (False, "false"),
        ("", None),
        (None, None),
    ],
)
def test_numbers_and_booleans_of_the_context_are_text_as_on_aws(value: object, user: str | None) -> None:
    assert AuthorizerContext.from_event({"user": value}).user == user


@pytest.mark.parametrize("key", ["user", "join", "publish", "expiresAt"])
@pytest.mark.parametrize("value", [["a"], {"a": 1}, 2**53, -(2**53), 1e300, float("inf"), float("nan")])
def test_context_with_other_values_is_rejected_by_name(key: str, value: object) -> None:
    with pytest.raises(InvalidContext, match=rf"^{key} of the authorizer's context: expected a string$"):
        AuthorizerContext.from_event({key: value})


def test_keys_that_are_not_needed_are_ignored() -> None:
    context: dict[str, Any] = {"principalId": "me", "integrationLatency": 12, "claims": {"sub": "bob"}}
    assert AuthorizerContext.from_event(context) == AuthorizerContext()
