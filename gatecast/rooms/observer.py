"""What goes wrong without a request's failing, for a log and for metrics.

Nothing that a client sent is in it, and no third-party error's message, which may quote it.
"""

import logging
from typing import Any, Final

from botocore.exceptions import ClientError

from gatecast.rooms.errors import NoPublisher, RequestRejected

_logger: Final = logging.getLogger("gatecast.rooms")


class Observer:
    """This one writes one line per event to the log `gatecast.rooms`, and counts nothing."""

    def warn(self, event: str, **details: object) -> None:
        _logger.warning("%s", _line(event, details))

    def fail(self, event: str, error: Exception) -> None:
        """A call has failed, and the request continues."""
        details: dict[str, Any] = {"error": type(error).__name__}
        match error:
            case ClientError():
                details |= {"code": error.response["Error"]["Code"], "operation": error.operation_name}
            case RequestRejected() | NoPublisher():
                details["reason"] = str(error)
        _logger.error("%s", _line(event, details))

    def count_unannounced(self, events: int) -> None:
        """Joins and departures that could not be announced to their rooms."""

    def count_damaged(self, attributes: int) -> None:
        """Invalid attributes of one settings item that was read."""


LOG: Final = Observer()


def _line(event: str, details: dict[str, Any]) -> str:
    return " ".join([event, *(f"{name}={value!r}" for name, value in details.items())])
