"""Capacity: no kind takes every place, and a parked broadcast holds none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatecast import Broadcast
from worker.pipeline.capacity import Capacity, Place, kind_of


def fill(capacity: Capacity, kind: str) -> list[Place]:
    places = []
    while capacity.has_place_for(kind):
        places.append(capacity.reserve(kind))
    return places


def test_one_kind_takes_half_and_two_take_a_third_each() -> None:
    capacity = Capacity(64)
    assert len(fill(capacity, "a")) == 32
    assert len(fill(capacity, "b")) == 16
    capacity = Capacity(60)
    kinds = {"a": 0, "b": 0}
    for _ in range(100):
        for kind in kinds:
            if capacity.has_place_for(kind):
                capacity.reserve(kind)
                kinds[kind] += 1
    assert kinds == {"a": 20, "b": 20}


@given(st.integers(1, 100), st.lists(st.sampled_from("abcde"), max_size=300))
def test_a_kind_without_places_finds_one_while_few_kinds_are_flooded(places: int, arrivals: list[str]) -> None:
    """The first takes half of the places, the next half of the rest, and so on."""
    capacity = Capacity(places)
    for kind in arrivals:
        if capacity.has_place_for(kind):
            capacity.reserve(kind)
    assert capacity.taken <= places
    if 2 ** len(set(arrivals)) <= places:
        assert capacity.has_place_for("another")


def test_parking_releases_the_place_once_and_counts_until_the_release() -> None:
    capacity = Capacity(1)
    place = capacity.reserve("a")
    assert not capacity.free
    assert place.park(10)
    assert place.park(10)
    assert (capacity.free, capacity.parked) == (1, 1)
    place.release()
    place.release()
    assert (capacity.free, capacity.parked) == (1, 0)


def test_parking_is_bounded_by_number_and_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.pipeline.capacity.MAX_PARKED", 3)
    monkeypatch.setattr("worker.pipeline.capacity.MAX_PARKED_BYTES", 1_000)
    capacity = Capacity(100)
    places = [capacity.reserve("a") for _ in range(5)]
    assert [place.park(10) for place in places] == [True, True, True, False, False]
    places[0].release()
    assert not capacity.reserve("a").park(990)
    assert places[3].park(10)


@pytest.mark.parametrize(
    ("broadcast", "kind"),
    [
        (Broadcast(id="1", room="lobby", data="x"), "lobby"),
        (Broadcast(id="1", room="lobby", data="x", shard=3, part="s3"), "lobby"),
        (Broadcast(id="1", connections=("c",), data="x"), "to connections"),
        (Broadcast(id="1", connections=("c",), data="x", part="r-abc"), "a remainder"),
        (Broadcast(id="1", connections=("c",), data="x", part="u-abc"), "a dead letter"),
        (Broadcast(id="1", connections=("c",), data="x", part="x-abc"), "a dead letter"),
    ],
)
def test_kinds(broadcast: Broadcast, kind: str) -> None:
    assert kind_of(broadcast) == kind
