"""Which users have been revoked (`gatecast.kicks`): one consistent read per connect.

Nothing is cached, so a revocation is in force as soon as it is written. While the table cannot be read, nobody is
admitted: connecting itself stores the connection in that table, so it would fail anyway.
"""

import time
from collections.abc import Callable
from typing import Any, Protocol

from botocore.exceptions import ClientError

from gatecast import table
from gatecast.kicks import is_revoked


class DynamoDB(Protocol):
    """The calls of a boto3 DynamoDB client that revocations need."""

    def get_item(self, **kwargs: Any) -> Any: ...
    def put_item(self, **kwargs: Any) -> Any: ...


class Revocations:
    """`clock` returns seconds since the epoch. Thread-safe. The SDK's errors pass through."""

    def __init__(self, dynamodb: DynamoDB, table_name: str, clock: Callable[[], float] = time.time) -> None:
        self._dynamodb = dynamodb
        self._table = table_name
        self._clock = clock

    def is_revoked(self, user: str, *, issued_at: float | None) -> bool:
        """Whether the user may not connect with a token issued at this time, in seconds since the epoch."""
        key = table.key(table.user_pk(user), table.NOT_BEFORE_SK)
        response = self._dynamodb.get_item(TableName=self._table, Key=key, ConsistentRead=True)
        return is_revoked(response.get("Item"), issued_at=issued_at, now=self._clock())

    def revoke(self, user: str, *, not_before: int) -> None:
        """Until this time, in seconds since the epoch, nobody connects as this user.

        A revocation that ends later remains as it is. Raises ValueError for a time in another unit.
        """
        try:
            self._dynamodb.put_item(
                TableName=self._table,
                Item=table.revocation_item(user, not_before=not_before),
                ConditionExpression="attribute_not_exists(not_before) OR not_before < :not_before",
                ExpressionAttributeValues={":not_before": {"N": str(not_before)}},
            )
        except ClientError as error:
            if error.response["Error"]["Code"] != "ConditionalCheckFailedException":
                raise
