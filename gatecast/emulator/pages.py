"""Static pages that a gateway serves at its own address, for people who try it in a browser. Not part of API Gateway.

A page may use only what comes from the same address, and connect only to it; no other page may embed it.
"""

from collections.abc import Mapping
from typing import NamedTuple

from aiohttp import web


class Page(NamedTuple):
    """The content of one path."""

    content_type: str
    body: bytes


def serve(request: web.BaseRequest, pages: Mapping[str, Page]) -> web.Response | None:
    """The response to a request for one of the `pages`, by path; None for any other request.

    Requests of other pages cannot be told from those of a person who follows a link, and learn nothing: a page
    contains nothing secret. The gateway has checked the `Host`, which becomes part of the page's policy.
    """
    page = pages.get(request.path)
    if page is None or request.method not in {"GET", "HEAD"}:
        return None
    own = f"ws://{request.host}"
    policy = f"default-src 'none'; script-src 'self'; style-src 'self'; connect-src {own}; form-action 'none'"
    return web.Response(
        body=page.body,
        headers={
            "Content-Type": page.content_type,
            "Content-Security-Policy": f"{policy}; frame-ancestors 'none'; base-uri 'none'",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-cache",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        },
    )
