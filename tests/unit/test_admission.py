"""Admission: work without a place waits in bounded numbers, and kinds take turns."""

import pytest

from worker.pipeline.admission import Admission, Work
from worker.pipeline.capacity import Capacity, Place


class Starter:
    """Records the work that admission starts."""

    def __init__(self, places: int) -> None:
        self.capacity = Capacity(places)
        self.items: list[tuple[str, Place]] = []
        self.admission: Admission[str] = Admission(self.capacity, lambda item, place: self.items.append((item, place)))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.items]

    def offer(self, *names: str) -> list[bool]:
        return [self.admission.offer(Work(name, name[0], 10)) for name in names]


def test_work_without_a_place_waits_in_order_and_kinds_take_turns() -> None:
    starter = Starter(4)
    starter.offer("a1", "a2", "a3", "a4", "b1", "b2", "b3")
    assert starter.names == ["a1", "a2", "b1"]
    for _, place in list(starter.items):
        place.release()
    assert starter.names[3:5] == ["a3", "b2"]
    for _, place in list(starter.items):
        place.release()
    assert sorted(starter.names) == ["a1", "a2", "a3", "a4", "b1", "b2", "b3"]
    assert len(starter.admission) == 0


def test_new_work_does_not_overtake_waiting_work_of_its_kind() -> None:
    starter = Starter(2)
    starter.offer("a1", "a2")
    assert starter.names == ["a1"]
    starter.items[0][1].release()
    starter.offer("a3")
    assert starter.names == ["a1", "a2"]


def test_waiting_work_is_bounded_by_number_and_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.pipeline.admission.MAX_WAITING", 2)
    starter = Starter(1)
    assert starter.offer("a1", "a2", "a3", "a4") == [True, True, True, False]
    monkeypatch.setattr("worker.pipeline.admission.MAX_WAITING", 5)
    monkeypatch.setattr("worker.pipeline.admission.MAX_WAITING_BYTES", 35)
    assert starter.offer("a5", "a6") == [True, False]


def test_closing_returns_waiting_work_and_starts_nothing_more() -> None:
    starter = Starter(1)
    starter.offer("a1", "a2", "b1")
    assert list(starter.admission.close()) == ["a2", "b1"]
    starter.items[0][1].release()
    assert starter.offer("a3") == [False]
    assert starter.names == ["a1"]
