"""What is remembered of rooms' histories, and what is forgotten."""

from concurrent.futures import ThreadPoolExecutor

from routes.entry_cache import EntryCache, StoredEntry


def entry(text: str = "x", size: int = 100) -> StoredEntry:
    return StoredEntry(text.encode().ljust(size), 0.0, None)


def filled(cache: EntryCache, room: str, *offsets: int, size: int = 100) -> None:
    cache.add(room, {offset: entry(str(offset), size) for offset in offsets})


def test_runs_end_where_an_entry_is_not_known() -> None:
    cache = EntryCache()
    filled(cache, "a", 1, 2, 3, 5)
    assert list(cache.run("a", 1, 9, 100)) == [1, 2, 3]
    assert list(cache.run("a", 2, 2, 100)) == [2]
    assert list(cache.run("a", 3, 1, 100)) == [3, 2, 1]
    assert list(cache.run("a", 1, 9, 2)) == [1, 2]
    assert list(cache.run("a", 4, 9, 100)) == []
    assert list(cache.run("b", 1, 9, 100)) == []


def test_a_head_never_moves_back() -> None:
    cache = EntryCache()
    assert cache.head("a") == 0
    cache.remember_head("a", 7)
    cache.remember_head("a", 5)
    assert cache.head("a") == 7


def test_entries_are_not_replaced() -> None:
    cache = EntryCache()
    cache.add("a", {1: entry("first")})
    cache.add("a", {1: entry("second"), 2: entry()})
    assert (cache.run("a", 1, 1, 1)[1].encoded or b"").startswith(b"first")


def test_the_mean_length_of_known_entries() -> None:
    cache = EntryCache()
    assert cache.bytes_per_entry("a") is None
    cache.remember_head("a", 7)
    assert cache.bytes_per_entry("a") is None
    filled(cache, "a", *range(1, 101), size=1_000)
    assert 1_000 <= (cache.bytes_per_entry("a") or 0) <= 1_500


def test_memory_is_bounded_and_the_rooms_used_last_remain() -> None:
    cache = EntryCache(max_bytes=100_000)
    for number in range(100):
        filled(cache, f"room-{number}", 1, 2, size=4_000)
        assert cache.run("room-0", 1, 2, 2), "it is used each time"
        assert cache._bytes <= 100_000
    kept = [number for number in range(100) if cache.run(f"room-{number}", 1, 2, 2)]
    assert kept == [0, *range(kept[1], 100)]
    assert len(kept) >= 9


def test_a_long_room_keeps_its_latest_entries_and_leaves_space_for_others() -> None:
    cache = EntryCache(max_bytes=100_000)
    filled(cache, "other", 1)
    for start in range(1, 1_001, 10):
        filled(cache, "long", *range(start, start + 10), size=500)
    assert cache.run("other", 1, 1, 1)
    known = cache.run("long", 1_000, 1, 1_000)
    assert list(known) == list(range(1_000, 1_000 - len(known), -1))
    assert 20 <= len(known) <= 35


def test_an_entry_larger_than_the_memory_is_forgotten() -> None:
    cache = EntryCache(max_bytes=1_000)
    filled(cache, "a", 1, size=5_000)
    assert not cache.run("a", 1, 1, 1)
    assert cache._bytes <= 1_000


def test_many_rooms_without_entries_are_bounded_too() -> None:
    cache = EntryCache(max_bytes=50_000)
    for number in range(1_000):
        cache.remember_head(f"room-{number}", number)
    assert len(cache._rooms) <= 100


def test_bytes_are_counted_right_however_threads_interleave() -> None:
    cache = EntryCache(max_bytes=200_000)

    def use(seed: int) -> None:
        for number in range(200):
            room = f"room-{(seed * 7 + number) % 13}"
            filled(cache, room, *range(number, number + 5), size=300)
            cache.run(room, number, number + 5, 5)
            cache.remember_head(room, number)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(use, range(8)))
    assert cache._bytes == sum(room.bytes for room in cache._rooms.values()) <= 200_000
    for room in cache._rooms.values():
        assert room.bytes == 500 + sum(len(each.encoded or b"") + 250 for each in room.entries.values())
