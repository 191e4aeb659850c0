"""Rate limits on joining, leaving, publishing and reading.

There is one counter per user (or per connection, if the user is unknown), action and window of ten seconds. Counters
are items of the table, because a client's messages reach any of many Lambda environments, which share nothing else: in
memory alone, the effective limit would be multiplied by the number of environments. All connections of a user share its
counter, so opening more gains nothing; and as each connection is within its user's limit, it needs no second counter.

Requests for history, members and counts share one counter, `read`: so what a user's requests may cost does not depend
on their mix. It is not that of joins, so that a client that catches up with a long history can still join other rooms.
A join that is announced to the members of a room with presence is counted beside the request (`announce`), because one
request joins up to 25 rooms. Pings are not counted: a response costs less than a counter, and API Gateway limits each
route for all clients together.

A counter costs one conditional write per request, in addition to the transaction of a join or leave, or the publish's
read and message. A token bucket would be smoother, but needs a second write whenever a client changes between idle and
busy. The price of fixed windows is that up to twice the limit may pass around the boundary of two windows.

Clients that a window's counter has rejected are remembered in memory until the window ends: further requests over the
limit cost nothing and cannot throttle the counter's partition. A flood on one counter therefore hardly ever makes that
counter unwritable. If a counter cannot be written, the whole table is overloaded, for example by many clients that
connect at once. Then requests pass uncounted: publishing needs no other write, and a limit that guards against a few
clients must not stop all of them. Missing permissions or a missing table are configuration errors, and do fail the
request.

The item: pk `limit#user#{user}` or `limit#connection#{connection_id}`, sk `{action}#{window's start in seconds}`, with
`used` N and `expires_at` N. No other item's key begins with `limit#`, and no user's name yields another user's counter.
"""

from collections.abc import Mapping
from typing import Any, Final, Protocol

from botocore import exceptions
from botocore.exceptions import ClientError

from gatecast import table
from gatecast.rooms.connection import Connection
from routes.log import logger
from routes.responses import Code, RequestRejected

WINDOW_SECONDS: Final = 10
MAX_PER_SECOND: Final = 100
"""A partition accepts 1,000 writes per second; a counter takes at most that many per window before it rejects."""
MAX_REMEMBERED: Final = 10_000

TTL_MARGIN_SECONDS: Final = 60
_TABLE_UNAVAILABLE: Final = frozenset(
    {
        "InternalServerError",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "ServiceUnavailable",
        "ThrottlingException",
    }
)


class SupportsUpdateItem(Protocol):
    def update_item(self, **kwargs: Any) -> Any: ...


class Limits:
    """Counts through a boto3 client that must not retry: a retry would be counted twice.

    `per_second` has a number for each action; 0 means no limit. Thread-safe.
    """

    def __init__(self, dynamodb: SupportsUpdateItem, table_name: str, per_second: Mapping[str, int]) -> None:
        self._dynamodb = dynamodb
        self._table = table_name
        self._per_second = per_second
        self._rejected: dict[tuple[str, str], int] = {}

    def count(self, action: str, caller: Connection) -> None:
        """Counts one request. Raises RequestRejected (rate_limited).

        The SDK's errors pass through, unless they mean that the table is overloaded or unreachable.
        """
        limit = self._per_second[action] * WINDOW_SECONDS
        if not limit:
            return
        now = caller.requested_at_ms // 1000
        window = now - now % WINDOW_SECONDS
        counter = (_pk(caller), action)
        if self._rejected.get(counter) != window and self._is_within_limit(counter, window, limit):
            return
        if len(self._rejected) >= MAX_REMEMBERED:
            self._rejected.clear()
        self._rejected[counter] = window
        raise RequestRejected(
            Code.RATE_LIMITED,
            f"at most {limit:,} in {WINDOW_SECONDS} s",
            retry_after_seconds=window + WINDOW_SECONDS - now,
        )

    def _is_within_limit(self, counter: tuple[str, str], window: int, limit: int) -> bool:
        """Counts one request. Whether it is within the limit; True also if it cannot be counted now."""
        pk, action = counter
        try:
            self._dynamodb.update_item(
                TableName=self._table,
                Key=table.key(pk, f"{action}#{window}"),
                UpdateExpression="SET expires_at = :expires_at ADD used :one",
                ConditionExpression="attribute_not_exists(used) OR used < :limit",
                ExpressionAttributeValues={
                    ":expires_at": {"N": str(window + WINDOW_SECONDS + TTL_MARGIN_SECONDS)},
                    ":one": {"N": "1"},
                    ":limit": {"N": str(limit)},
                },
            )
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code == "ConditionalCheckFailedException":
                return False
            if code not in _TABLE_UNAVAILABLE:
                raise
            logger.warning("limit.not_counted", extra={"action": action, "code": code})
        except (exceptions.ConnectionError, exceptions.HTTPClientError) as error:  # no timely response
            logger.warning("limit.not_counted", extra={"action": action, "code": type(error).__name__})
        return True


def _pk(caller: Connection) -> str:
    return f"limit#user#{caller.user}" if caller.user else f"limit#connection#{caller.connection_id}"
