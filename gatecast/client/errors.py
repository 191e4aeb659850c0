"""What the client raises. Every error is a `ClientError`."""


class ClientError(Exception):
    """The base of the client's errors."""


class RequestFailed(ClientError):
    """The server has rejected a request, or could not carry it out.

    `code` is one of the documented error codes, `message` is for people, and `retry_after_seconds` is given where the
    request came too early.
    """

    def __init__(self, code: str, message: str = "", retry_after_seconds: float | None = None) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
        self.message = message
        self.retry_after_seconds = retry_after_seconds


class ConnectionFailed(ClientError):
    """A connection could not be opened. The cause is the transport's error, or what the token's callable raised."""


class ConnectionRejected(ConnectionFailed):
    """The server responded to the upgrade with another `status` than 101; 401 and 403 are about the token."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the server rejected the connection with status {status}")
        self.status = status


class WrongDialect(ConnectionFailed):
    """The server did not choose `gatecast.v2`: it is older than this client, or no Gatecast."""

    def __init__(self, chosen: str | None) -> None:
        super().__init__(f"the server chose the subprotocol {chosen or 'none'}, and this client needs gatecast.v2")
        self.chosen = chosen


class Disconnected(ClientError):
    """The connection ended before the response arrived. Requests are retried; this is raised where that was useless."""


class ConnectionClosed(ClientError):
    """The client has stopped for good, and does not connect again.

    `code` is what the server gave as the reason, or `closed` after the program left the `async with` block.
    """

    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
