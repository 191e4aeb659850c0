"""The subprotocols that a client offers when it connects: dialects, and beside them at most one token. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from gatecast.frames import V1, V2

SUBPROTOCOLS: Final = {"gatecast.v2": V2, "gatecast.v1": V1}
"""The dialect of each supported subprotocol. Of several that a client offers, the first of these is chosen."""


def offered_subprotocols(event: Mapping[str, Any]) -> list[str]:
    """The values of `Sec-WebSocket-Protocol`, in the client's order. One of them may be a token."""
    lines = header_values(event, "sec-websocket-protocol")
    return [offered for line in lines for part in line.split(",") if (offered := part.strip())]


def header_values(event: Mapping[str, Any], lower_name: str) -> list[str]:
    """The values of a header, one per line in which the client sent it. Names of headers are in any case."""
    headers: Mapping[str, Any] = event.get("multiValueHeaders") or event.get("headers") or {}
    values: list[str] = []
    for name, value in headers.items():
        if name.lower() == lower_name:
            values += [value] if isinstance(value, str) else value
    return values


def without_dialects(offered: Sequence[str]) -> list[str]:
    """What remains of the offers behind the supported subprotocols with which they begin, each of them once."""
    dialects: set[str] = set()
    for number, each in enumerate(offered):
        if each not in SUBPROTOCOLS or each in dialects:
            return list(offered[number:])
        dialects.add(each)
    return []


def chosen_subprotocol(event: Mapping[str, Any]) -> str | None:
    """The subprotocol that `$connect` returns: the newest supported one that the client offers.

    It never echoes another offer, which may be a token. Browsers fail a connection if none of their offers is accepted.
    """
    offered = offered_subprotocols(event)
    return next((each for each in SUBPROTOCOLS if each in offered), None)


def chosen_dialect(event: Mapping[str, Any]) -> int:
    """V2 if the client offers it, else V1."""
    chosen = chosen_subprotocol(event)
    return SUBPROTOCOLS[chosen] if chosen else V1
