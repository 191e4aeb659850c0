"""Distinguishes requests of web pages from those of programs.

Any web page can make the browser send requests to 127.0.0.1, which only this machine's programs should reach. Such
requests are identified by `Origin`, by `Sec-Fetch-Site` and, in a DNS rebinding attack, by the site's name in `Host`.
Standard library only: it also runs in ministack's environment.
"""

from collections.abc import Collection, Sequence
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

LOOPBACK_ORIGINS: Final = tuple(
    f"{scheme}://{host}:*" for scheme in ("http", "https") for host in ("localhost", "127.0.0.1", "[::1]")
)
"""The pages of this machine, for `is_allowed_origin`."""
_FOREIGN_SITES: Final = ("cross-site", "same-site")


def browser_rejection(hosts: Sequence[str], origins: Sequence[str], sites: Sequence[str]) -> str | None:
    """Why a request is rejected as possibly made by a web page; None if a program made it.

    The arguments are the values of the headers `Host`, `Origin` and `Sec-Fetch-Site`.
    """
    return page_rejection(origins, sites) or host_rejection(hosts)


def page_rejection(origins: Sequence[str], sites: Sequence[str]) -> str | None:
    """As `browser_rejection`, where the `Host` has been checked already."""
    if origins:
        return "requests with an Origin are rejected"
    if any(site.strip().lower() in _FOREIGN_SITES for site in sites):
        return "requests from web pages are rejected"
    return None


def host_rejection(hosts: Sequence[str], *, allowed_hosts: Collection[str] = ()) -> str | None:
    """Why a request is rejected as possibly meant for another host; None if its `Host` is this machine or allowed.

    `allowed_hosts` are names in lower case, without a port.
    """
    if len(hosts) != 1 or not _is_local(hosts[0], allowed_hosts):
        return "the Host must be 127.0.0.1, localhost or [::1]"
    return None


def is_allowed_origin(origin: str, allowed: Collection[str]) -> bool:
    """Whether pages of this origin may connect. An allowed one that ends in `:*` may have any port, or none.

    >>> is_allowed_origin("http://localhost:3000", ["http://localhost:*"])
    True
    >>> is_allowed_origin("http://localhost.example", ["http://localhost:*"])
    False
    """
    name, colon, port = origin.rpartition(":")
    any_port = f"{name}:*" if colon and port.isascii() and port.isdigit() else f"{origin}:*"
    return origin in allowed or any_port in allowed


def host_name(host: str) -> str | None:
    """The name or address of a `Host`, in lower case and without the port; None if it is malformed.

    >>> host_name("Gateway:8080"), host_name("a/b")
    ('gateway', None)
    """
    try:
        parts = urlsplit(f"//{host}")
        name, _ = parts.hostname, parts.port  # reading the port validates it
    except ValueError:
        return None
    return name if parts.netloc == host and parts.username is None else None


def _is_local(host: str, allowed: Collection[str]) -> bool:
    name = host_name(host)
    if name is None:
        return False
    if name == "localhost" or name in allowed:
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False
