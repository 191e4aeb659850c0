"""Checks of the API's address: a post to a made-up connection id, and its end, which reach no client.

API Gateway returns 410 for it if the address, the signature and the permission are right. Reports disagree on 410 and
400 for ids of another form.
"""

import base64
import secrets
from collections.abc import Iterator
from typing import Any, Final

from gatecast.cli.doctor.findings import Finding, failed, ok, warning
from gatecast.cli.environment import ENDPOINT, shown
from gatecast.cli.failures import Cause, explain

_CALLS: Final = {"POST": "post_to_connection", "DELETE": "delete_connection"}
_REACHED: Final = frozenset({400, 410})
_THROTTLED: Final = 429
_FORBIDDEN: Final = 403
_NO_SUCH_PATH: Final = frozenset({_FORBIDDEN, 404})
_UNEXPLAINED: Final = frozenset({Cause.OTHER, Cause.FORBIDDEN, Cause.UNKNOWN_CREDENTIALS})
_ADDRESS: Final = (
    f"set {ENDPOINT} to https://{{api}}.execute-api.{{region}}.amazonaws.com/{{stage}}, with the stage and nothing "
    "behind it, or to a custom domain with its base path and no stage; in a VPC that has an endpoint of execute-api "
    "with private DNS, to a custom domain"
)


def check(management: Any, url: str, role_policy: str) -> Iterator[Finding]:
    """`management` is a client of this API. Raises an error that is none of the SDK's."""
    for method, name in _CALLS.items():
        arguments = {"ConnectionId": base64.b64encode(secrets.token_bytes(11)).decode()}
        try:
            getattr(management, name)(**arguments, **({"Data": b"{}"} if method == "POST" else {}))
        except Exception as error:  # noqa: BLE001 - `_judge` raises it again if it is none of the SDK's
            finding = _judge(error, method, url, role_policy)
        else:
            finding = warning(
                "endpoint",
                f"{shown(url)} accepts a {method} to a connection that does not exist: it is not API Gateway",
                f"check {ENDPOINT}",
            )
        yield finding
        if finding.check == "endpoint" and finding.state.value != "ok":
            return


def _judge(error: Exception, method: str, url: str, role_policy: str) -> Finding:
    problem = explain(error)
    if problem is None:
        raise error
    permission = f"permission execute-api:ManageConnections ({method})"
    status = getattr(error, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if problem.cause is Cause.DENIED or (method == "DELETE" and status == _FORBIDDEN):
        return failed(permission, problem.what, f"allow it on …/{method}/@connections/*: {role_policy}")
    if status in _REACHED or status == _THROTTLED:
        return ok("endpoint", "API Gateway knows the address") if method == "POST" else ok(permission, "allowed")
    if problem.cause is Cause.UNREACHABLE:
        return failed(
            "endpoint",
            f"{shown(url)} cannot be reached ({type(error).__name__})",
            f"check the host in {ENDPOINT}, and the network",
        )
    if status in _NO_SUCH_PATH and problem.cause in _UNEXPLAINED and _is_about_path(error):
        return failed("endpoint", f"{shown(url)} has no such path or stage (status {status})", _ADDRESS)
    return Finding.from_problem("endpoint", problem)


def _is_about_path(error: Exception) -> bool:
    """A path that does not exist is forbidden, or lacks a token; anything wrong with the signature is described."""
    found = getattr(error, "response", {}).get("Error", {})
    return found.get("Code") in {"ForbiddenException", "403", "404", "NotFoundException", "Forbidden"} or (
        "Missing Authentication Token" in str(found.get("Message", ""))
    )
