"""A DynamoDB client that returns scripted responses, and the SDK's errors."""

from collections.abc import Callable
from typing import Any

from botocore.exceptions import ClientError

FAILED = "ConditionalCheckFailed"
"""The reason for which a transaction is cancelled if a condition has failed."""
Call = tuple[str, dict[str, Any]]


def error(code: str, operation: str = "AnyOperation", reasons: list[str] | None = None) -> ClientError:
    response: dict[str, Any] = {"Error": {"Code": code, "Message": "secret"}}
    if reasons is not None:
        response["CancellationReasons"] = [{"Code": reason} for reason in reasons]
    return ClientError(response, operation)


def cancelled(*reasons: str) -> ClientError:
    return error("TransactionCanceledException", "TransactWriteItems", list(reasons))


class Scripted:
    """Returns the next response of the operation's script for each call, or an empty response."""

    def __init__(self, **scripts: list[Any]) -> None:
        self.scripts = scripts
        self.calls: list[Call] = []

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        def call(**arguments: Any) -> Any:
            self.calls.append((operation, arguments))
            script = self.scripts.get(operation) or [{}]
            response = script.pop(0) if len(script) > 1 else script[0]
            if isinstance(response, Exception):
                raise response
            return response

        return call

    def count(self, operation: str) -> int:
        return sum(called == operation for called, _ in self.calls)

    def arguments(self, operation: str) -> list[dict[str, Any]]:
        """Those of the operation's calls, in order."""
        return [arguments for called, arguments in self.calls if called == operation]
