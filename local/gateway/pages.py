"""Static pages that a gateway serves at its own address, for people who try it in a browser. Not part of API Gateway.

A page may use only what comes from the same address, and connect only to it; no other page may embed it.
"""

from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import NamedTuple

from aiohttp import web

from local.gateway.browser_requests import host_rejection


class Page(NamedTuple):
    """The content of one path."""

    content_type: str
    body: bytes


def serve(request: web.BaseRequest, pages: Mapping[str, Page], *, hosts: Collection[str] = ()) -> web.Response | None:
    """The response to a request for one of the `pages`, by path; None for any other request.

    Requests of other pages cannot be told from those of a person who follows a link, and learn nothing: a page
    contains nothing secret. Only the `Host` is checked, for it becomes part of the page's policy.
    """
    page = pages.get(request.path)
    if page is None or request.method not in {"GET", "HEAD"}:
        return None
    host = request.headers.getall("Host", [])
    if reason := host_rejection(host, allowed_hosts=hosts):
        return web.json_response({"message": reason}, status=HTTPStatus.FORBIDDEN)
    policy = f"default-src 'none'; script-src 'self'; style-src 'self'; connect-src ws://{host[0]}; form-action 'none'"
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
