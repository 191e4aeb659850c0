r"""Route selection expressions: which route key a client's message yields. Pure.

`$request.body.action` is the field `action` of a message in JSON; its path may lead into objects. Braces bound a
variable, text beside variables stays as it is, and `\$` is a dollar sign: `${request.body.service}-v1`.

Source: "WebSocket selection expressions" in the API Gateway developer guide. What a field yields that is no string is
not documented: numbers and booleans are taken as JSON writes them, anything else yields no key.
"""

import json
import re
from typing import Any, Final, NamedTuple, Self

_VARIABLE: Final = re.compile(
    r"\\(?P<escaped>\$)"
    r"|\$(?:\{request\.body\.(?P<bounded>[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)\}"
    r"|request\.body\.(?P<plain>[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*))"
)


class Selection(NamedTuple):
    """A parsed expression: texts, and the paths of fields between them."""

    parts: tuple[str | tuple[str, ...], ...]

    @classmethod
    def parse(cls, expression: str) -> Self:
        """Raises ValueError, which says what is expected."""
        parts: list[str | tuple[str, ...]] = []
        position = 0
        for found in _VARIABLE.finditer(expression):
            parts.append(expression[position : found.start()])
            path = found["bounded"] or found["plain"]
            parts.append(tuple(path.split(".")) if path else "$")
            position = found.end()
        parts.append(expression[position:])
        if any("$" in part for part in parts if isinstance(part, str) and part != "$") or not any(
            isinstance(part, tuple) for part in parts
        ):
            raise ValueError(f"{expression!r}: expected an expression such as $request.body.action")
        return cls(tuple(part for part in parts if part))

    def key(self, message: str) -> str | None:
        """The route key that a message yields; None if the message is no JSON or has no such field."""
        try:
            decoded = json.loads(message)
        except (ValueError, RecursionError):
            return None
        values = [part if isinstance(part, str) else _field(decoded, part) for part in self.parts]
        return None if None in values else "".join(map(str, values))


def _field(value: Any, path: tuple[str, ...]) -> str | None:
    for name in path:
        if not isinstance(value, dict) or name not in value:
            return None
        value = value[name]
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, bool | int | float) else None


ACTION: Final = Selection.parse("$request.body.action")
