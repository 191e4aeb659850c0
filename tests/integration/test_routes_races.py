"""Concurrent joins, leaves and `$disconnect`: whichever wins the race, no item of the connection remains."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from gatecast.rooms.memberships import Memberships
from routes.requests import Caller
from routes.responses import Code, RequestRejected
from tests.routes_events import CONNECTION_ID, event

CALLER = Caller.from_event(event())


class Interrupted:
    """A DynamoDB client that runs `interruption` before one of its calls."""

    def __init__(self, dynamodb: Any, before_call: int, interruption: Callable[[], None]) -> None:
        self._dynamodb = dynamodb
        self._calls_left = before_call
        self._interruption = interruption

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        def call(**arguments: Any) -> Any:
            if self._calls_left == 0:
                self._interruption()
            self._calls_left -= 1
            return getattr(self._dynamodb, operation)(**arguments)

        return call

    @property
    def was_interrupted(self) -> bool:
        return self._calls_left < 0


def remaining_items(dynamodb: Any, table: str) -> list[Any]:
    items: list[Any] = dynamodb.scan(TableName=table, ConsistentRead=True)["Items"]
    return items


def join_unless_closing(memberships: Memberships, room: str) -> None:
    try:
        memberships.join(CALLER, [room])
    except RequestRejected as rejection:
        if rejection.code is not Code.NOT_CONNECTED:
            raise


@pytest.mark.parametrize("before_call", range(3))
def test_a_join_between_the_steps_of_a_disconnect(dynamodb: Any, table: str, before_call: int) -> None:
    memberships = Memberships(dynamodb, table)
    memberships.connect(CALLER, ["@all"])
    interrupted = Interrupted(dynamodb, before_call, lambda: join_unless_closing(memberships, "lobby"))
    Memberships(interrupted, table).disconnect(CONNECTION_ID)
    assert interrupted.was_interrupted
    assert remaining_items(dynamodb, table) == []


@pytest.mark.parametrize("before_call", range(2))
def test_a_disconnect_between_the_steps_of_a_join(dynamodb: Any, table: str, before_call: int) -> None:
    memberships = Memberships(dynamodb, table)
    memberships.connect(CALLER, ["@all"])
    interrupted = Interrupted(dynamodb, before_call, lambda: memberships.disconnect(CONNECTION_ID))
    with pytest.raises(RequestRejected) as rejection:
        Memberships(interrupted, table).join(CALLER, ["lobby"])
    assert rejection.value.code is Code.NOT_CONNECTED
    assert interrupted.was_interrupted
    assert remaining_items(dynamodb, table) == []


def test_joins_leaves_and_a_disconnect_on_threads_of_their_own(dynamodb: Any, table: str) -> None:
    memberships = Memberships(dynamodb, table)
    errors: list[Exception] = []

    def run(step: Callable[[], None], start: threading.Barrier) -> None:
        start.wait()
        try:
            step()
        except Exception as error:  # noqa: BLE001 - reported by the main thread
            errors.append(error)

    for _ in range(10):
        memberships.connect(CALLER, ["@all"])
        steps: list[Callable[[], None]] = [
            lambda: memberships.disconnect(CONNECTION_ID),
            lambda: memberships.leave(CALLER, "one"),
            *(partial(join_unless_closing, memberships, room) for room in ("one", "two", "three")),
        ]
        start = threading.Barrier(len(steps))
        threads = [threading.Thread(target=run, args=(step, start)) for step in steps]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert remaining_items(dynamodb, table) == []


@pytest.mark.parametrize("before_call", range(3))
def test_a_leave_between_the_steps_of_a_disconnect(dynamodb: Any, table: str, before_call: int) -> None:
    memberships = Memberships(dynamodb, table)
    memberships.connect(CALLER, ["@all"])
    memberships.join(CALLER, ["lobby"])
    interrupted = Interrupted(dynamodb, before_call, lambda: memberships.leave(CALLER, "lobby"))
    Memberships(interrupted, table).disconnect(CONNECTION_ID)
    assert remaining_items(dynamodb, table) == []
