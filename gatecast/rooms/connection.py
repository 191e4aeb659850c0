"""The connection on whose behalf the table is written."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from gatecast import table
from gatecast.frames import V1


class Connection(Protocol):
    """What membership depends on. `_ms` are milliseconds since the epoch, `expires_at` is in seconds.

    All items of a connection expire at `expires_at`: workers do not post to it afterwards. `frames` is its dialect, V1
    or V2.
    """

    @property
    def connection_id(self) -> str: ...
    @property
    def connected_at_ms(self) -> int: ...
    @property
    def requested_at_ms(self) -> int: ...
    @property
    def expires_at(self) -> int: ...
    @property
    def user(self) -> str | None: ...
    @property
    def frames(self) -> int: ...


class StoredConnection(NamedTuple):
    """A connection as its item describes it."""

    connection_id: str
    connected_at_ms: int
    requested_at_ms: int
    expires_at: int
    user: str | None = None
    frames: int = V1

    @classmethod
    def from_item(
        cls, connection_id: str, item: Mapping[str, Any] | None, requested_at_ms: int
    ) -> "StoredConnection | None":
        """None if there is no item, or none that has not expired at this time."""
        connected_at_ms, expires_at = (
            table.lenient_number((item or {}).get(name)) for name in ("connected_at_ms", "expires_at")
        )
        if item is None or expires_at is None or expires_at <= requested_at_ms // 1000:
            return None
        return cls(
            connection_id,
            int(connected_at_ms or 0),
            requested_at_ms,
            int(expires_at),
            table.text_of(item.get("user")),
            table.frames_of(item),
        )
