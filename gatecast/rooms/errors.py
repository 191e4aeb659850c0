"""Why a request is rejected: the codes of the protocol with clients, and the exception that carries one."""

from enum import StrEnum


class Code(StrEnum):
    """Why a client's message was rejected. Clients may rely on the codes; the accompanying message is for people."""

    BAD_REQUEST = "bad_request"
    """Not a JSON object, or a field is missing, of the wrong type or out of range. The message names the field."""
    FORBIDDEN_ROOM = "forbidden_room"
    """The token does not allow it, or the room is a system room (its name begins with @), which no client may join,
    leave or publish to."""
    NOT_A_MEMBER = "not_a_member"
    """Only members may publish to a room, or read what is in it: join it first."""
    NOT_CONNECTED = "not_connected"
    """The connection is closing, or older than a connection's maximum lifetime."""
    RATE_LIMITED = "rate_limited"
    """Too many requests of this kind: retry after `retry_after_seconds`, a field beside the code."""
    TOKEN_EXPIRED = "token_expired"  # noqa: S105 - a code, no password
    """The token with which the client connected has expired: reconnect with a new one."""
    TOO_LARGE = "too_large"
    """More data than can be posted to a client."""
    TOO_MANY_ROOMS = "too_many_rooms"
    """The connection is a member of as many rooms as it may be: leave one first."""
    UNAVAILABLE = "unavailable"
    """The request is valid, but a dependency failed: retry. A publish retried with the same `id` is delivered once."""
    UNKNOWN_ACTION = "unknown_action"


class RequestRejected(Exception):
    """The client's request was rejected. The message is for the client and quotes nothing that the client sent."""

    def __init__(self, code: Code, message: str, *, retry_after_seconds: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_seconds = retry_after_seconds


class NoPublisher(Exception):
    """There is nothing to publish with. The message says what is missing, and contains nothing secret."""
