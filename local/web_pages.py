"""Telling requests that a web page made from those of programs.

A page of any site can have a browser send requests to 127.0.0.1, where only this machine's programs should reach.
Browsers mark them: by `Origin`, by `Sec-Fetch-Site`, and, where the name of a site leads to 127.0.0.1, by its `Host`.
Standard library only: ministack's environment runs it, too.
"""

from collections.abc import Collection, Sequence
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

_FOREIGN_SITES: Final = ("cross-site", "same-site")


def page_rejection(
    hosts: Sequence[str], origins: Sequence[str], sites: Sequence[str], *, allowed_hosts: Collection[str] = ()
) -> str | None:
    """Why a request is rejected: it may have been made by a page. None if it was made by a program.

    The values are those of the headers `Host`, `Origin` and `Sec-Fetch-Site`. `allowed_hosts` are names that count as
    loopback hosts.
    """
    if origins:
        return "requests with an Origin are rejected"
    if any(site.strip().lower() in _FOREIGN_SITES for site in sites):
        return "requests from web pages are rejected"
    if len(hosts) != 1 or not _is_local(hosts[0], allowed_hosts):
        return "the Host must be 127.0.0.1, localhost or [::1]"
    return None


def _is_local(host: str, allowed: Collection[str]) -> bool:
    try:
        parts = urlsplit(f"//{host}")
        name, _ = parts.hostname, parts.port  # the port is checked where it is read
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
