"""Joins rooms: what must be right beforehand, the memberships, and then what the client missed in each room."""

from collections.abc import Mapping
from typing import Any

from routes import dependencies
from routes.history import Recovery
from routes.joins import JoinRequest
from routes.log import logger
from routes.metrics import record_recoveries
from routes.requests import Caller
from routes.responses import Code, RequestRejected, echoed, error_fields

Result = Recovery | RequestRejected | None
"""What became of one room: None if it was joined and has no history."""


def join(caller: Caller, request: JoinRequest) -> dict[str, Result]:
    """Joins each room that can be joined, in the order of the request.

    Positions are checked before anything is written. Then come the memberships, and only then the histories are read:
    what is published later reaches the new member. Raises RequestRejected (not_connected, unavailable). The SDK's
    errors pass through; joining again is safe.
    """
    positions = request.positions
    settings = dependencies.settings().get(list(positions)) if positions else {}
    with_history = {room: each for room, each in positions.items() if settings[room].history_seconds}
    rejected: dict[str, RequestRejected] = {}
    if with_history:
        rejected |= dependencies.history().check(with_history)
    if rooms := [room for room in positions if room not in rejected]:
        rejected |= _join(caller, rooms)
    recovered: Mapping[str, Recovery] = {}
    if wanted := {room: each for room, each in with_history.items() if room not in rejected}:
        recovered = dependencies.history().resume(wanted, rooms=len(request.rooms))
        record_recoveries([recovered[room] for room, each in wanted.items() if each.is_given])
    invalid = {room: each for room, each in request.rooms.items() if isinstance(each, RequestRejected)}
    return {room: invalid.get(room) or rejected.get(room) or recovered.get(room) for room in request.rooms}


def fields(room: str, result: Result) -> dict[str, Any]:
    """The room's part of the response."""
    if isinstance(result, RequestRejected):
        return {"room": echoed(room), "error": error_fields(result)}
    return {"room": room, **(result.fields() if result else {})}


def _join(caller: Caller, rooms: list[str]) -> Mapping[str, RequestRejected]:
    rejected = dependencies.memberships().join(caller, rooms)
    failure = next((each for each in rejected.values() if each.code is Code.UNAVAILABLE), None)
    if failure and len(rooms) > 1:  # that of a single room is logged with the request
        details = {"action": "join", "error": type(failure).__name__, "reason": failure.message}
        logger.error("route.failed", extra=details)
    return rejected
