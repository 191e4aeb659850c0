"""Round robin over groups; within a group the earliest source first."""

from worker.decisions.round_robin import RoundRobin


class FakeSource:
    def __init__(self, name: str, count: int, *, group: str = "", order: int = 0) -> None:
        self.group, self.order = group or name, (order, 0)
        self.items = [f"{name}{number}" for number in range(count)]
        self.in_round_robin = False

    def take(self) -> str | None:
        return self.items.pop(0) if self.items else None


def test_broadcasts_take_turns() -> None:
    round_robin: RoundRobin[str] = RoundRobin()
    a, b = FakeSource("a", 3), FakeSource("b", 1)
    round_robin.add(a)
    round_robin.add(b)
    round_robin.add(a)
    assert [round_robin.take() for _ in range(5)] == ["a0", "b0", "a1", "a2", None]
    assert not round_robin
    a.items = ["a3"]
    round_robin.add(a)
    assert round_robin.take() == "a3"


def test_groups_take_turns_and_within_a_group_the_earliest_goes_first() -> None:
    round_robin: RoundRobin[str] = RoundRobin()
    sources = [
        FakeSource("late", 2, group="room", order=5),
        FakeSource("early", 2, group="room", order=1),
        FakeSource("other", 2, group="other", order=9),
    ]
    for source in sources:
        round_robin.add(source)
    assert [round_robin.take() for _ in range(7)] == ["early0", "other0", "early1", "other1", "late0", "late1", None]
