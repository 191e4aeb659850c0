"""The names of rooms that clients may use, and of those that the system keeps."""

import pytest

from gatecast.rooms.errors import Code, RequestRejected
from gatecast.rooms.names import system_rooms, user_room, validate_client_room


def test_a_user_has_its_own_room() -> None:
    assert system_rooms(None) == ["@all"]
    assert system_rooms("alice") == ["@all", "@user/alice"]
    assert system_rooms("u" * 94) == ["@all", "@user/" + "u" * 94]


@pytest.mark.parametrize("user", ["u" * 95, "alice smith", "zoë", "a\n", "\ud800"])
def test_user_that_does_not_fit_in_a_room_name_is_rejected(user: str) -> None:
    with pytest.raises(RequestRejected, match=r"^user: "):
        system_rooms(user)


@pytest.mark.parametrize("room", ["lobby", "!", "~" * 100, "a/b#c:0", "user@home"])
def test_valid_room_names(room: str) -> None:
    assert validate_client_room(room) == room


@pytest.mark.parametrize("room", ["", "r" * 101, "two words", "zoë", "lobby\n", "\x7f"])
def test_invalid_room_names(room: str) -> None:
    with pytest.raises(RequestRejected, match=r"^room: ") as rejection:
        validate_client_room(room)
    assert rejection.value.code is Code.BAD_REQUEST


@pytest.mark.parametrize("room", ["@all", "@user/alice", "@"])
def test_system_rooms_are_forbidden(room: str) -> None:
    with pytest.raises(RequestRejected) as rejection:
        validate_client_room(room)
    assert rejection.value.code is Code.FORBIDDEN_ROOM


@pytest.mark.parametrize("user", ["", "alice smith", "zoë", "u" * 95, "a\0", "a\n", "\ud800"])
def test_users_without_a_room(user: str) -> None:
    assert user_room(user) is None


def test_a_users_room() -> None:
    assert user_room("u" * 94) == "@user/" + "u" * 94
