"""Places: no kind takes all of them, and what only waits takes none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatecast import Broadcast
from worker.pipeline.admission import Admission, Work
from worker.pipeline.capacity import Capacity, Place, kind_of


def fill(capacity: Capacity, kind: str) -> list[Place]:
    places = []
    while capacity.has_place_for(kind):
        places.append(capacity.hold(kind))
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
                capacity.hold(kind)
                kinds[kind] += 1
    assert kinds == {"a": 20, "b": 20}


@given(st.integers(1, 100), st.lists(st.sampled_from("abcde"), max_size=300))
def test_a_kind_that_holds_none_has_a_place_while_few_kinds_are_flooded(places: int, arrivals: list[str]) -> None:
    """The first takes half of the places, the next half of the rest, and so on."""
    capacity = Capacity(places)
    for kind in arrivals:
        if capacity.has_place_for(kind):
            capacity.hold(kind)
    assert capacity.taken <= places
    if 2 ** len(set(arrivals)) <= places:
        assert capacity.has_place_for("another")


def test_what_parks_gives_its_place_back_once_and_counts_until_it_is_released() -> None:
    capacity = Capacity(1)
    place = capacity.hold("a")
    assert not capacity.free
    assert place.park(10)
    assert place.park(10)
    assert (capacity.free, capacity.parked) == (1, 1)
    place.release()
    place.release()
    assert (capacity.free, capacity.parked) == (1, 0)


def test_how_many_park_is_bounded_by_number_and_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.pipeline.capacity.MAX_PARKED", 3)
    monkeypatch.setattr("worker.pipeline.capacity.MAX_PARKED_BYTES", 1_000)
    capacity = Capacity(100)
    places = [capacity.hold("a") for _ in range(5)]
    assert [place.park(10) for place in places] == [True, True, True, False, False]
    places[0].release()
    assert not capacity.hold("a").park(990)
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


class Started:
    def __init__(self, places: int) -> None:
        self.capacity = Capacity(places)
        self.items: list[tuple[str, Place]] = []
        self.admission: Admission[str] = Admission(self.capacity, lambda item, place: self.items.append((item, place)))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.items]

    def offer(self, *names: str) -> list[bool]:
        return [self.admission.offer(Work(name, name[0], 10)) for name in names]


def test_what_has_no_place_waits_in_order_and_kinds_take_turns() -> None:
    started = Started(4)
    started.offer("a1", "a2", "a3", "a4", "b1", "b2", "b3")
    assert started.names == ["a1", "a2", "b1"]
    for _, place in list(started.items):
        place.release()
    assert started.names[3:5] == ["a3", "b2"]
    for _, place in list(started.items):
        place.release()
    assert sorted(started.names) == ["a1", "a2", "a3", "a4", "b1", "b2", "b3"]
    assert len(started.admission) == 0


def test_a_kind_that_waits_is_not_overtaken_by_its_own() -> None:
    started = Started(2)
    started.offer("a1", "a2")
    assert started.names == ["a1"]
    started.items[0][1].release()
    started.offer("a3")
    assert started.names == ["a1", "a2"]


def test_so_many_wait_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.pipeline.admission.MAX_WAITING", 2)
    started = Started(1)
    assert started.offer("a1", "a2", "a3", "a4") == [True, True, True, False]
    monkeypatch.setattr("worker.pipeline.admission.MAX_WAITING", 5)
    monkeypatch.setattr("worker.pipeline.admission.MAX_WAITING_BYTES", 35)
    assert started.offer("a5", "a6") == [True, False]


def test_after_closing_nothing_starts_and_what_waited_comes_back() -> None:
    started = Started(1)
    started.offer("a1", "a2", "b1")
    assert list(started.admission.close()) == ["a2", "b1"]
    started.items[0][1].release()
    assert started.offer("a3") == [False]
    assert started.names == ["a1"]
