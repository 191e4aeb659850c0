"""After the last event the announced state is the true one, in every schedule of a user's connections.

`tests.presence_model` describes what is explored. The simpler rules at the end show why each part of the real one is
needed: each of them fails in some schedule.
"""

from collections.abc import Collection, Iterator

import pytest

from gatecast.presence import PresenceItem
from tests.presence_model import Announces, Request, Variant, explore

Scene = tuple[tuple[Request, ...], tuple[str, ...]]
"""Requests, and the connections that are members when they begin."""


def joins(*times: tuple[str, int]) -> Iterator[Request]:
    yield from (Request(number, "join", connection, time) for number, (connection, time) in enumerate(times, start=10))


def leaves(*connections: str, kind: str = "leave") -> Iterator[Request]:
    yield from (Request(number, kind, connection) for number, connection in enumerate(connections, start=20))


def disconnects(*connections: str) -> Iterator[Request]:
    yield from (Request(number, "disconnect", connection) for number, connection in enumerate(connections, start=30))


SCENES: dict[str, Scene] = {
    "one tab opens": ((*joins(("a", 5)),), ()),
    "one tab opens and closes": ((*joins(("a", 5)), *disconnects("a")), ()),
    "two tabs open": ((*joins(("a", 5), ("b", 6)),), ()),
    "two tabs open at the same time": ((*joins(("a", 5), ("b", 5)),), ()),
    "three tabs open and the first one leaves": ((*joins(("a", 5), ("b", 6), ("c", 7)), *leaves("a")), ()),
    "one of two opening tabs leaves": ((*joins(("a", 5), ("b", 6)), *leaves("a")), ()),
    "the other one of two opening tabs leaves": ((*joins(("a", 5), ("b", 6)), *leaves("b")), ()),
    "one of two opening tabs closes": ((*joins(("a", 5), ("b", 6)), *disconnects("a")), ()),
    "two opening tabs close": ((*joins(("a", 5), ("b", 6)), *disconnects("a", "b")), ()),
    "two tabs leave": ((*leaves("a", "b"),), ("a", "b")),
    "two tabs close": ((*disconnects("a", "b"),), ("a", "b")),
    "a tab leaves and closes": ((*leaves("a"), *disconnects("a")), ("a",)),
    "a tab leaves and closes beside another": ((*leaves("a"), *disconnects("a")), ("a", "b")),
    "a page is reloaded": ((*disconnects("a"), *joins(("b", 5))), ("a",)),
    "a page is reloaded twice": ((*disconnects("a", "b"), *joins(("b", 5), ("c", 6))), ("a",)),
    "a connection is renewed": ((*joins(("b", 5)), *leaves("a"), *disconnects("a")), ("a",)),
    "a tab leaves and joins": ((*leaves("a"), *joins(("a", 5))), ("a",)),
    "a tab leaves and joins beside another": ((*leaves("a"), *joins(("a", 5), ("b", 6))), ("a",)),
    "a tab joins, leaves and joins while another opens": ((*joins(("a", 5), ("b", 6), ("a", 7)), *leaves("a")), ()),
    "a member joins again while another leaves": ((*joins(("a", 5)), *leaves("b")), ("a", "b")),
    "a slow deletion": ((*leaves("a", kind="slow_leave"), *joins(("b", 5))), ("a",)),
    "a slow deletion beside a fast one": ((*leaves("a", kind="slow_leave"), *disconnects("b")), ("a", "b")),
}
queues = pytest.mark.parametrize("fifo", [False, True], ids=["standard", "fifo"])


@queues
@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)
def test_the_announced_state_is_the_true_one(scene: Scene, fifo: bool) -> None:
    requests, present = scene
    found = explore(requests, present=present, variant=Variant(fifo=fifo))
    assert found["right"]
    assert not found["wrong"], found


BEFORE_PRESENCE: dict[str, Scene] = {
    "a member joins again": ((*joins(("a", 5)),), ()),
    "a member joins again twice": ((*joins(("a", 5), ("a", 6)),), ()),
    "a member joins again while another tab opens": ((*joins(("a", 5), ("b", 5)),), ()),
    "a member joins again and leaves": ((*joins(("a", 5)), *leaves("a")), ()),
    "a member joins again and closes": ((*joins(("a", 5)), *disconnects("a")), ()),
    "a member joins again beside a tab that leaves": ((*joins(("a", 5)), *leaves("b")), ("b",)),
    "a member joins again, leaves and closes beside another": (
        (*joins(("a", 5)), *leaves("a"), *disconnects("b")),
        ("b",),
    ),
    "a member that is not present leaves beside a tab that opens": ((*joins(("b", 5)), *leaves("a")), ()),
}


@pytest.mark.parametrize(("fifo", "crashes"), [(False, 0), (False, 1), (True, 0)])
@pytest.mark.parametrize("scene", BEFORE_PRESENCE.values(), ids=BEFORE_PRESENCE)
def test_members_since_before_the_room_had_presence(scene: Scene, fifo: bool, crashes: int) -> None:
    requests, present = scene
    found = explore(requests, present=present, members=("a",), variant=Variant(fifo=fifo), crashes=crashes)
    assert found["right"]
    assert not found["wrong"], found


OF_CRASHES = [
    "two tabs open",
    "two tabs open at the same time",
    "a page is reloaded",
    "a connection is renewed",
    "a tab leaves and closes beside another",
    "two tabs leave",
    "two tabs close",
]


@pytest.mark.parametrize("scene", OF_CRASHES)
def test_processes_that_die_are_made_up_for_by_retries(scene: str) -> None:
    requests, present = SCENES[scene]
    found = explore(requests, present=present, variant=Variant(), crashes=1)
    assert not found["wrong"], found


def test_a_join_that_died_and_is_never_retried_may_leave_another_tab_unannounced() -> None:
    """The price of announcing only the oldest: the other tab relied on an announcement that never came."""
    requests, present = SCENES["one of two opening tabs closes"]
    found = explore(requests, present=present, variant=Variant(), crashes=1)
    assert found["wrong"]


def test_on_a_fifo_queue_a_departure_is_lost_with_its_process() -> None:
    requests, present = SCENES["two tabs leave"]
    found = explore(requests, present=present, variant=Variant(fifo=True), crashes=1)
    assert found["wrong"]


def is_the_only_one(items: Collection[PresenceItem], connection: str, _joined_at: int | None, _now: float) -> bool:
    return [item.connection_id for item in items] == [connection]


def is_there_and_the_oldest(
    items: Collection[PresenceItem], connection: str, _joined_at: int | None, _now: float
) -> bool:
    times = {item.connection_id: (item.joined_at_ms, item.connection_id) for item in items}
    return connection in times and times[connection] == min(times.values())


def always(_items: Collection[PresenceItem], _connection: str, _joined_at: int | None, _now: float) -> bool:
    return True


@pytest.mark.parametrize("fifo", [False, True], ids=["standard", "fifo"])
@pytest.mark.parametrize(
    ("announces", "scene"),
    [
        (is_the_only_one, "two tabs open"),
        (is_there_and_the_oldest, "one of two opening tabs leaves"),
        (always, "one tab opens and closes"),
    ],
    ids=["only", "oldest", "always"],
)
def test_simpler_rules_for_joins_fail(announces: Announces, scene: str, fifo: bool) -> None:
    requests, present = SCENES[scene]
    assert explore(requests, present=present, variant=Variant(fifo=fifo, announces=announces))["wrong"]


@pytest.mark.parametrize(
    ("variant", "scene"),
    [
        (Variant(time_before_query=False), "one tab opens and closes"),
        (Variant(time_before_query=False, fifo=True), "one tab opens and closes"),
        (Variant(delayed=False), "two tabs close"),
        (Variant(fifo=True, fifo_announces_first=True), "two tabs close"),
        (Variant(latest_wins=False), "a page is reloaded"),
        (Variant(looks=False), "a connection is renewed"),
    ],
    ids=["time after the query", "the same on FIFO", "no delay", "FIFO first", "last received", "no look"],
)
def test_leaving_out_a_part_of_the_rules_fails(variant: Variant, scene: str) -> None:
    requests, present = SCENES[scene]
    assert explore(requests, present=present, variant=variant)["wrong"]
