"""How often a client may join and publish.

There is one counter for each action of a user, or of a connection whose user is not known, and window of ten seconds:
an item of the table, because a client's messages reach any of many Lambda environments, which share nothing else. In
memory alone the limit would be as many times as high as there are environments. All connections of a user share its
counter, so nobody gains by opening more; and as each connection is within its user's limit, it needs no second counter.

It costs one conditional write for each join and publish, beside the transaction of a join and the read and the message
of a publish. A token bucket would be smoother, but takes a second write whenever a client turns from silent to busy or
back. The price of fixed windows is that twice the limit may pass around the moment where two of them meet.

Whom a window's counter has refused is remembered here until the window ends: requests over the limit then cost nothing
and cannot throttle the counter's partition. So it is not a flood's own doing, but for a moment of a window, when a
counter cannot be written, but trouble of the whole table, such as a wave of clients that connect. Then requests are let
through, uncounted: publishing takes no other write, and a counter that guards against a few must not stop all. A
counter that nobody may write, or a table that is not there, is a mistake of whoever set it up, and stops them.

The item: pk `limit#user#{user}` or `limit#connection#{connection_id}`, sk `{action}#{window's start in seconds}`, with
`used` N and `expires_at` N. No other item's key begins with `limit#`, and no user's name makes a counter of another's.
"""

from collections.abc import Mapping
from typing import Any, Final, Protocol

from botocore import exceptions
from botocore.exceptions import ClientError

from gatecast import table
from routes.answers import Code, Refused
from routes.log import logger
from routes.requests import Caller

WINDOW_SECONDS: Final = 10
MOST_PER_SECOND: Final = 100
"""A partition takes 1,000 writes a second. A flood over the limit is refused after ten times as many of them."""
MAX_REMEMBERED: Final = 10_000

_KEPT_SECONDS: Final = 60
_TROUBLE: Final = frozenset(
    {
        "InternalServerError",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "ServiceUnavailable",
        "ThrottlingException",
    }
)


class UpdatesItems(Protocol):
    def update_item(self, **kwargs: Any) -> Any: ...


class Limits:
    """Counts through a boto3 client, which must not repeat a call: it would be counted twice.

    `per_second` has a number for each action; 0 is no limit. Safe to use from several threads.
    """

    def __init__(self, dynamodb: UpdatesItems, table_name: str, per_second: Mapping[str, int]) -> None:
        self._dynamodb = dynamodb
        self._table = table_name
        self._per_second = per_second
        self._refused: dict[tuple[str, str], int] = {}

    def count(self, action: str, caller: Caller) -> None:
        """Counts one more. Raises Refused (rate_limited), and what the SDK raises for all but a table in trouble."""
        most = self._per_second[action] * WINDOW_SECONDS
        if not most:
            return
        now = caller.requested_at_ms // 1000
        window = now - now % WINDOW_SECONDS
        counter = (_pk(caller), action)
        if self._refused.get(counter) != window and self._counts(counter, window, most):
            return
        if len(self._refused) >= MAX_REMEMBERED:
            self._refused.clear()
        self._refused[counter] = window
        raise Refused(
            Code.RATE_LIMITED,
            f"at most {most:,} in {WINDOW_SECONDS} s",
            retry_after_seconds=window + WINDOW_SECONDS - now,
        )

    def _counts(self, counter: tuple[str, str], window: int, most: int) -> bool:
        """Whether it is within the limit, or cannot be counted now."""
        pk, action = counter
        try:
            self._dynamodb.update_item(
                TableName=self._table,
                Key=table.key(pk, f"{action}#{window}"),
                UpdateExpression="SET expires_at = :expires_at ADD used :one",
                ConditionExpression="attribute_not_exists(used) OR used < :most",
                ExpressionAttributeValues={
                    ":expires_at": {"N": str(window + WINDOW_SECONDS + _KEPT_SECONDS)},
                    ":one": {"N": "1"},
                    ":most": {"N": str(most)},
                },
            )
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code == "ConditionalCheckFailedException":
                return False
            if code not in _TROUBLE:
                raise
            logger.warning("limit.not_counted", extra={"action": action, "code": code})
        except (exceptions.ConnectionError, exceptions.HTTPClientError) as error:  # no connection, no answer in time
            logger.warning("limit.not_counted", extra={"action": action, "code": type(error).__name__})
        return True


def _pk(caller: Caller) -> str:
    return f"limit#user#{caller.user}" if caller.user else f"limit#connection#{caller.connection_id}"
