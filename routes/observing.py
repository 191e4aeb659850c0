"""What the rooms report (`gatecast.rooms.observer`), in the routes' log and metrics."""

from typing import Final

from gatecast.rooms.observer import Observer
from routes.log import log_failure, logger
from routes.metrics import record_damaged_settings, record_unannounced_presence


class RoutesObserver(Observer):
    def warn(self, event: str, **details: object) -> None:
        logger.warning(event, extra=details)

    def fail(self, event: str, error: Exception) -> None:
        log_failure(event, error)

    def count_unannounced(self, events: int) -> None:
        record_unannounced_presence(events)

    def count_damaged(self, attributes: int) -> None:
        record_damaged_settings(attributes)


OBSERVER: Final = RoutesObserver()
