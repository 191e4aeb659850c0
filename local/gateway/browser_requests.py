"""Distinguishes requests of web pages from those of programs.

Any web page can make the browser send requests to 127.0.0.1, which only this machine's programs should reach. Such
requests are identified by `Origin`, by `Sec-Fetch-Site` and, in a DNS rebinding attack, by the site's name in `Host`.
Standard library only: it also runs in ministack's environment.
"""

from collections.abc import Collection, Sequence
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

_FOREIGN_SITES: Final = ("cross-site", "same-site")


def browser_rejection(
    hosts: Sequence[str], origins: Sequence[str], sites: Sequence[str], *, allowed_hosts: Collection[str] = ()
) -> str | None:
    """Why a request is rejected as possibly made by a web page; None if a program made it.

    The arguments are the values of the headers `Host`, `Origin` and `Sec-Fetch-Site`. `allowed_hosts` are accepted
    like loopback hosts.
    """
    if origins:
        return "requests with an Origin are rejected"
    if any(site.strip().lower() in _FOREIGN_SITES for site in sites):
        return "requests from web pages are rejected"
    return host_rejection(hosts, allowed_hosts=allowed_hosts)


def host_rejection(hosts: Sequence[str], *, allowed_hosts: Collection[str] = ()) -> str | None:
    """Why a request is rejected as possibly meant for another host; None if its `Host` is this machine or allowed."""
    if len(hosts) != 1 or not _is_local(hosts[0], allowed_hosts):
        return "the Host must be 127.0.0.1, localhost or [::1]"
    return None


def _is_local(host: str, allowed: Collection[str]) -> bool:
    try:
        parts = urlsplit(f"//{host}")
        name, _ = parts.hostname, parts.port  # reading the port validates it
    except ValueError:
        return False
    if name is None or parts.netloc != host or parts.username is not None:
        return False
    if name == "localhost" or name in allowed:
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False
