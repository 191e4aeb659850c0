"""Counts the calls that go through boto3 clients, and DynamoDB's units.

Source: "DynamoDB read and write operations" in the developer guide. A write costs a unit per KB and item, in a
transaction two, also if a condition fails; a consistent read a unit per 4 KB, another one half of it. A query is billed
for the sum of the items that it reads, every other read per item; the smallest read costs as much as 4 KB.
"""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

_SMALL = 1024
"""All items of the routes are smaller than that."""


class Cost(NamedTuple):
    """Of one operation of the routes. `calls`: how many of each kind."""

    calls: dict[str, int]
    written: float
    read: float

    @property
    def dynamodb(self) -> int:
        """How many calls of DynamoDB."""
        return sum(count for operation, count in self.calls.items() if operation != "send_message")


class Meter:
    """What has been counted since the last `take`."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()
        self._written = 0.0
        self._read = 0.0

    def take(self) -> Cost:
        cost = Cost(dict(self._calls), self._written, self._read)
        self.__init__()  # type: ignore[misc]
        return cost

    def metered(self, client: Any) -> Any:
        """A client whose calls are counted."""
        return _Metered(client, self._count)

    def _count(self, operation: str, arguments: dict[str, Any], response: Any) -> None:
        self._calls[operation] += 1
        match operation:
            case "transact_write_items":
                self._written += 2 * len(arguments["TransactItems"])
            case "batch_write_item":
                self._written += sum(len(requests) for requests in arguments["RequestItems"].values())
            case "put_item" | "update_item" | "delete_item":
                self._written += 1
            case "batch_get_item":
                self._read += sum(_unit(each) * len(each["Keys"]) for each in arguments["RequestItems"].values())
            case "get_item":
                self._read += _unit(arguments)
            case "query":
                assert "ProjectionExpression" not in arguments, "it is billed for whole items"
                self._read += _unit(arguments) * -(-max(1, _bytes(arguments, response)) // 4096)


class _Metered:
    def __init__(self, client: Any, count: Callable[[str, dict[str, Any], Any], None]) -> None:
        self._client = client
        self._count = count

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        def call(**arguments: Any) -> Any:
            response: Any = None
            try:
                response = getattr(self._client, operation)(**arguments)
            finally:
                self._count(operation, arguments, response)
            return response

        return call


def _unit(arguments: dict[str, Any]) -> float:
    return 1.0 if arguments.get("ConsistentRead") else 0.5


def _bytes(arguments: dict[str, Any], response: Any) -> int:
    """The size of the items of a query's page, roughly; a query that counts is taken to read items of 150 bytes."""
    if arguments.get("Select") == "COUNT":
        return 150 * int(response["ScannedCount"])
    return sum(len(name) + len(json.dumps(value)) for item in response["Items"] for name, value in item.items())
