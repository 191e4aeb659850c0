"""REQUEST authorizers of `$connect`: checks identity sources and evaluates the returned policy. Pure.

All identity sources are required: if one is missing or empty, the response is a 401 and the authorizer is not invoked.
The context that it returns must be flat; every value reaches the routes as a string.
"""

import fnmatch
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from gatecast.emulator.events import ConnectionInfo
from gatecast.emulator.integration import Failure, Function

_MESSAGE_OF_401: Final = "Unauthorized"
_HEADER: Final = "route.request.header."
_QUERY: Final = "route.request.querystring."


class Authorizer(NamedTuple):
    """A Lambda authorizer `(event, context) -> policy`, or such a function elsewhere.

    An identity source is, for example, `route.request.header.Auth` or `route.request.querystring.token`.
    """

    handler: Function
    identity_sources: tuple[str, ...] = ()


class Denied(NamedTuple):
    """The status with which the upgrade is rejected."""

    status: HTTPStatus


def check_identity_source(source: str) -> None:
    """Raises ValueError for one that WebSocket APIs do not support, or that is not emulated."""
    if not any(source.startswith(prefix) and source != prefix for prefix in (_HEADER, _QUERY)):
        raise ValueError(f"unknown identity source {source!r}: expected {_HEADER}NAME or {_QUERY}NAME")


def has_identity(authorizer: Authorizer, info: ConnectionInfo) -> bool:
    """Whether the request has every identity source. Raises ValueError for one that WebSocket APIs do not support."""
    headers = {name.lower(): value for name, value in info.headers}
    query = dict(info.query)
    for source in authorizer.identity_sources:
        check_identity_source(source)
        if source.startswith(_HEADER):
            value = headers.get(source.removeprefix(_HEADER).lower())
        else:
            value = query.get(source.removeprefix(_QUERY))
        if not value:
            return False
    return True


def denied(failure: Failure) -> Denied:
    """An authorizer that raises exactly "Unauthorized" results in a 401; any other failure results in a 500."""
    unauthorized = str(failure.error) == _MESSAGE_OF_401
    return Denied(HTTPStatus.UNAUTHORIZED if unauthorized else HTTPStatus.INTERNAL_SERVER_ERROR)


def decide(policy: Any, method_arn: str) -> dict[str, str | int] | Denied:
    """The authorizer's context for the routes, or Denied. A malformed policy results in a 500."""
    try:
        allowed = _allows(policy["policyDocument"]["Statement"], method_arn)
        context = {name: _flat(value) for name, value in (policy.get("context") or {}).items()}
        principal = str(policy["principalId"])
    except (TypeError, KeyError, AttributeError, ValueError):
        return Denied(HTTPStatus.INTERNAL_SERVER_ERROR)
    if not allowed:
        return Denied(HTTPStatus.FORBIDDEN)
    return {"principalId": principal, "integrationLatency": 1, **context}


def _allows(statements: Any, method_arn: str) -> bool:
    """Whether the policy allows the ARN. An explicit denial wins, and the default is denial."""
    effects = {
        statement["Effect"]
        for statement in _listed(statements)
        if any(fnmatch.fnmatchcase(method_arn, pattern) for pattern in _listed(statement["Resource"]))
    }
    return effects == {"Allow"}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _flat(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    raise TypeError(f"an authorizer's context must be flat and cannot contain a {type(value).__name__}")
