"""The rooms that cost most: over a sliding window, and in bounded memory."""

import random

from worker.decisions.dearest_rooms import MAX_ROOMS, WINDOW_SECONDS, DearestRooms


def test_the_units_of_a_room_add_up_within_the_window() -> None:
    rooms = DearestRooms()
    for now, room, units in ((0.0, "a", 5), (30.0, "b", 7), (70.0, "a", 4), (500.0, "c", 1)):
        rooms.spent(room, units, now)
    assert rooms.dearest(2, 500.0) == [("a", 9), ("b", 7)]
    assert rooms.dearest(9, WINDOW_SECONDS + 10.0) == [("a", 4), ("c", 1)]
    assert rooms.dearest(9, 3 * WINDOW_SECONDS) == []
    rooms.spent("d", 2, 3 * WINDOW_SECONDS)
    assert rooms.dearest(9, 3 * WINDOW_SECONDS) == [("d", 2)]


def test_memory_is_bounded_and_the_dearest_are_found_among_very_many() -> None:
    rooms, rng = DearestRooms(), random.Random(1)
    for number in range(50_000):
        rooms.spent(f"cheap-{number}", 1, number / 100)
        if number % 10 == 0:
            rooms.spent(f"dear-{rng.randrange(20)}", 10, number / 100)
    held = sum(len(counts) for _, counts in rooms._intervals)
    assert held <= MAX_ROOMS * (WINDOW_SECONDS // 60 + 1)
    found = rooms.dearest(20, 500.0)
    assert {room.partition("-")[0] for room, _ in found} == {"dear"}
    assert sum(units for _, units in found) == 50_000
