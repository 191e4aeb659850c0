"""Connections that only cause rejected requests are closed.

A rejected request reaches no counter of `routes.limits`: malformed ones, unknown actions and forbidden rooms would
otherwise be unlimited, each at the price of an invocation and a response. They are counted per connection and window of
ten seconds, like joins: in memory, in each of Lambda's environments, and every tenth in the table, where the
environments that a connection reaches add up. Each of them begins to count at a random point of these ten. So of any
requests a tenth is written on average, however they are spread over environments, and also if so many connections are
counted that memory forgets one. At about MAX_REJECTED in a window the connection is closed. Requests that fail for
reasons of our own are not counted.

The item: pk `limit#connection#{connection_id}`, sk `rejected#{window's start in seconds}`, as in `routes.limits`.
"""

import random
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from botocore.exceptions import BotoCoreError, ClientError

from gatecast import table
from routes.limits import TTL_MARGIN_SECONDS, WINDOW_SECONDS, SupportsUpdateItem
from routes.log import log_failure, logger
from routes.requests import Caller

MAX_REJECTED: Final = 100
"""Per window: ten per second, more than any client needs that makes a mistake and not an attack."""
STEP: Final = 10
"""One request of this number is written to the table, and counts for all of them there."""
MAX_REMEMBERED: Final = 10_000
"""Connections, per environment. The one whose last rejected request is the oldest is forgotten."""


class _Counted(NamedTuple):
    window: int
    rejected: int
    """With the random number, below STEP, at which counting began."""
    closed: bool = False


class Rejections:
    """Counts through a boto3 client that must not retry. `close` closes a connection by its id. Thread-safe.

    `randbelow` returns a whole number from 0 to less than its argument.
    """

    def __init__(
        self,
        dynamodb: SupportsUpdateItem,
        table_name: str,
        close: Callable[[str], Any],
        randbelow: Callable[[int], int] = random.randrange,
    ) -> None:
        self._dynamodb = dynamodb
        self._table = table_name
        self._close = close
        self._randbelow = randbelow
        self._counted: OrderedDict[str, _Counted] = OrderedDict()
        self._lock = threading.Lock()

    def count(self, caller: Caller) -> None:
        """Counts one rejected request, and closes the connection at about MAX_REJECTED. Raises nothing."""
        now = caller.requested_at_ms // 1000
        window = now - now % WINDOW_SECONDS
        counted = self._add_in_memory(caller.connection_id, window)
        if counted.closed or counted.rejected % STEP:
            return
        if max(counted.rejected, self._add_in_table(caller.connection_id, window)) < MAX_REJECTED:
            return
        with self._lock:
            self._counted[caller.connection_id] = counted._replace(closed=True)
        try:
            self._close(caller.connection_id)
        except (BotoCoreError, ClientError) as error:
            if not _is_gone(error):
                log_failure("connection.not_closed", error)
        else:
            logger.warning("connection.closed", extra={"rejected": MAX_REJECTED, "seconds": WINDOW_SECONDS})

    def _add_in_memory(self, connection_id: str, window: int) -> _Counted:
        with self._lock:
            before = self._counted.pop(connection_id, None)
            if before is None or before.window != window:
                before = _Counted(window, self._randbelow(STEP))
            counted = self._counted[connection_id] = before._replace(rejected=before.rejected + 1)
            if len(self._counted) > MAX_REMEMBERED:
                self._counted.popitem(last=False)
            return counted

    def _add_in_table(self, connection_id: str, window: int) -> int:
        """Adds STEP to the count of all environments, and returns it; 0 if the table does not respond in time."""
        try:
            written = self._dynamodb.update_item(
                TableName=self._table,
                Key=table.key(f"limit#connection#{connection_id}", f"rejected#{window}"),
                UpdateExpression="SET expires_at = :expires_at ADD used :step",
                ExpressionAttributeValues={
                    ":expires_at": {"N": str(window + WINDOW_SECONDS + TTL_MARGIN_SECONDS)},
                    ":step": {"N": str(STEP)},
                },
                ReturnValues="UPDATED_NEW",
            )
        except (BotoCoreError, ClientError) as error:
            log_failure("rejection.not_counted", error)
            return 0
        return int(written["Attributes"]["used"]["N"])


def _is_gone(error: BotoCoreError | ClientError) -> bool:
    """Whether the connection had been closed already, by its client or by another environment."""
    return isinstance(error, ClientError) and error.response["Error"]["Code"] == "GoneException"
