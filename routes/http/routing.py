"""Which operation a method and a path name. Pure.

A parameter may contain slashes, as rooms' names do. So of the paths that match, the first one counts: those with more
after the parameter come first. A name that ends in one of these endings cannot be read by itself.
"""

import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from routes.http.problems import HttpRejected
from routes.responses import Code, RequestRejected

_PARAMETER: Final = re.compile(r"\{(\w+)\}")


class Operation(NamedTuple):
    """A method and a path, with at most one parameter in braces, and the function that performs it.

    `name` is the operation's id, for metrics and the log. `perform` takes the request, who sent it, and the parameter.
    """

    method: str
    path: str
    name: str
    perform: Callable[..., Any]

    def match(self, path: str) -> Mapping[str, str] | None:
        """The path's parameters; None if it is another path."""
        found = re.fullmatch(_PARAMETER.sub(r"(?P<\1>.+)", self.path), path, re.DOTALL)
        return found and found.groupdict()


def find(operations: tuple[Operation, ...], method: str, path: str) -> tuple[Operation, Mapping[str, str]]:
    """The operation, and the path's parameters. Raises RequestRejected (unknown_action): 404, or 405."""
    matching = [(each, parameters) for each in operations if (parameters := each.match(path)) is not None]
    if not matching:
        raise RequestRejected(Code.UNKNOWN_ACTION, "there is nothing at this path")
    same_path = [(each, parameters) for each, parameters in matching if each.path == matching[0][0].path]
    for operation, parameters in same_path:
        if operation.method == method:
            return operation, parameters
    allowed = ", ".join(sorted(each.method for each, _ in same_path))
    raise HttpRejected(
        HTTPStatus.METHOD_NOT_ALLOWED,
        Code.UNKNOWN_ACTION,
        f"the method must be {allowed.replace(', ', ' or ')}",
        headers={"allow": allowed},
    )
