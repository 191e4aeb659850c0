"""Checks of the table: that it exists, its keys, and that what has expired is deleted."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from gatecast.cli.doctor.findings import Finding, failed, ok, skipped
from gatecast.cli.environment import TABLE
from gatecast.cli.failures import Cause, Problem, explain

_KEY: Final = ("pk (S)", "sk (S)")
_EXPIRY: Final = "expires_at"
_ON: Final = frozenset({"ENABLED", "ENABLING"})


def check(dynamodb: Any, name: str) -> Iterator[Finding]:
    """Raises an error that is none of the SDK's."""
    described = _read(lambda: dynamodb.describe_table(TableName=name)["Table"])
    if isinstance(described, Problem):
        yield _unread(name, described, "dynamodb:DescribeTable")
        return
    key = _key(described)
    if key != _KEY:
        yield failed(
            "table",
            f"the key of {name} is {', '.join(key)}: expected {', '.join(_KEY)}",
            f"create a table with that key, and set {TABLE} to it: keys cannot be changed",
        )
        return
    if (status := described.get("TableStatus")) != "ACTIVE":
        yield failed("table", f"{name} is {status}", "wait until it is ACTIVE")
        return
    expiry = _read(lambda: dynamodb.describe_time_to_live(TableName=name)["TimeToLiveDescription"])
    if isinstance(expiry, Problem):
        yield _unread(name, expiry, "dynamodb:DescribeTimeToLive")
    elif expiry.get("TimeToLiveStatus") not in _ON or expiry.get("AttributeName") != _EXPIRY:
        yield failed(
            "table",
            f"time to live is off, or not by {_EXPIRY}: what has expired is never deleted, and costs money",
            f"aws dynamodb update-time-to-live --table-name {name} "
            f"--time-to-live-specification Enabled=true,AttributeName={_EXPIRY}",
        )
    else:
        yield ok("table", f"{name}: its keys are right, and items expire by {_EXPIRY}")


def _read(call: Any) -> Mapping[str, Any] | Problem:
    try:
        found: Mapping[str, Any] = call()
    except Exception as error:
        problem = explain(error)
        if problem is None:
            raise
        return problem
    return found


def _unread(name: str, problem: Problem, action: str) -> Finding:
    if problem.cause is Cause.DENIED:
        return skipped("table", f"{action} is not allowed", "no program needs it; run this once as an administrator")
    if problem.cause is Cause.NO_TABLE:
        return failed("table", f"{TABLE} is {name!r}: there is no such table in this Region", problem.remedy)
    return Finding.from_problem("table", problem)


def _key(described: Mapping[str, Any]) -> tuple[str, ...]:
    """The table's key: partition key first, each with its type."""
    types = {each["AttributeName"]: each["AttributeType"] for each in described.get("AttributeDefinitions", ())}
    by_kind = {each["KeyType"]: each["AttributeName"] for each in described.get("KeySchema", ())}
    names = [by_kind[kind] for kind in ("HASH", "RANGE") if kind in by_kind]
    return tuple(f"{name} ({types.get(name, '?')})" for name in names)
