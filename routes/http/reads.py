"""The query of a request for a room's history. Pure."""

import re
from typing import Final, NamedTuple

from gatecast.broadcast import LARGEST_OFFSET
from routes.http.request import Request
from routes.requests import MAX_LIMIT
from routes.responses import Code, RequestRejected

_NUMBER: Final = re.compile(r"[0-9]{1,16}")


class Page(NamedTuple):
    """At most `limit` messages after the offset `since`."""

    since: int
    limit: int


def page_of(request: Request) -> Page:
    """Without `since`, the latest messages that there are. Raises RequestRejected (bad_request)."""
    request.check_query("since", "limit")
    return Page(
        _number(request, "since", 0, LARGEST_OFFSET, default=0),
        _number(request, "limit", 1, MAX_LIMIT, default=MAX_LIMIT),
    )


def _number(request: Request, name: str, least: int, most: int, *, default: int) -> int:
    text = request.query.get(name, str(default))
    if not _NUMBER.fullmatch(text) or not least <= int(text) <= most:
        raise RequestRejected(Code.BAD_REQUEST, f"{name}: must be a whole number from {least} to {most}")
    return int(text)
