"""Table keys: different names never share a key."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatecast import table
from gatecast.room_settings import MAX_SHARDS, RoomSettings, SettingsItem, settings_names
from tests.property.strategies import connection_ids, names

shards = st.integers(0, 10_000)
near_names = st.sampled_from(["a", "a#0", "a#0#0", "a#00", "room#a", "room#a#0", "@all", "@all#0", "#", "##", "0"])


@given(near_names | names(), shards, near_names | names(), shards)
def test_rooms_share_no_partition(one: str, its: int, other: str, others: int) -> None:
    assert (table.room_pk(one, its) == table.room_pk(other, others)) == ((one, its) == (other, others))


@given(near_names | names(), near_names | names(), near_names | names() | st.just(""), connection_ids(), shards)
def test_different_item_types_share_no_key(room: str, name: str, target: str, connection_id: str, shard: int) -> None:
    connection = (table.connection_pk(connection_id), table.CONNECTION_SK)
    joined_room = (table.connection_pk(connection_id), table.joined_room_sk(room))
    keys = {
        (table.room_pk(room, shard), connection_id),
        connection,
        joined_room,
        (table.settings_pk(room), table.SETTINGS_SK),
        (table.progress_pk(target, name), table.progress_sk("")),
    }
    assert len(keys) == 5
    assert len({pk for pk, _ in keys}) == 4


@given(
    near_names | names() | st.just(""), near_names | names(), near_names | names() | st.just(""), near_names | names()
)
def test_broadcasts_share_no_progress(one: str, its_id: str, other: str, others_id: str) -> None:
    same = table.progress_pk(one, its_id) == table.progress_pk(other, others_id)
    assert same == ((one, its_id) == (other, others_id))


@given(connection_ids(), st.integers(1, 1_000))
def test_a_members_shard_is_among_the_shards_that_are_read(connection_id: str, join_shards: int) -> None:
    shard = table.shard_of(connection_id, join_shards)
    assert shard == table.shard_of(connection_id, join_shards)
    assert 0 <= shard < join_shards


@given(st.none() | st.integers(-5, 100), st.none() | st.integers(-5, 100))
def test_settings_never_hide_a_member(shards: int | None, join_shards: int | None) -> None:
    counts = {"shards": shards, "join_shards": join_shards}
    item = {name: {"N": str(count)} for name, count in counts.items() if count is not None}
    settings = RoomSettings.from_items([SettingsItem.from_item(item or None)])
    assert 1 <= settings.join_shards <= settings.shards
    assert settings.join_shards == max(1, join_shards if join_shards is not None else 1)
    assert settings.shards == max(settings.join_shards, shards if shards is not None else 1)


hostile_values: st.SearchStrategy[object] = st.sampled_from([
    {"N": "2.5"}, {"N": "1e9"}, {"N": "9.9E+125"}, {"N": "-3"}, {"N": "0"}, {"N": "abc"}, {"N": ""}, {"N": "nan"},
    {"N": "Infinity"}, {"N": 5}, {"S": "8"}, {"S": "eight"}, {"BOOL": True}, {"NULL": True}, {"L": []}, {"M": {}}, {},
    "8", 8, None, [],
])  # fmt: skip


@given(st.dictionaries(st.sampled_from(["shards", "join_shards", "history_seconds", "presence"]), hostile_values))
def test_any_settings_item_is_read_and_damage_is_reported(item: dict[str, object]) -> None:
    damaged: list[str] = []
    settings = RoomSettings.from_items([SettingsItem.from_item(item, damaged.append)])
    assert 1 <= settings.join_shards <= settings.shards <= MAX_SHARDS
    assert settings.history_seconds == settings.presence == 0
    zeros = {name for name in ("history_seconds", "presence") if item.get(name) == {"N": "0"}}
    assert set(damaged) == {name for name, value in item.items() if value is not None} - zeros


whole_numbers = st.none() | st.integers(0, 1_000)
layers = st.lists(st.builds(SettingsItem, whole_numbers, whole_numbers, whole_numbers, whole_numbers), max_size=3)


@given(layers)
def test_the_first_item_that_has_an_attribute_determines_it(items: list[SettingsItem]) -> None:
    settings = RoomSettings.from_items(items)
    assert settings.history_seconds == next(
        (each.history_seconds for each in items if each.history_seconds is not None), 0
    )
    assert settings.presence == next((each.presence for each in items if each.presence is not None), 0)
    assert settings.join_shards == max(1, next((each.join_shards for each in items if each.join_shards is not None), 1))


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        ("lobby", ("lobby", "*")),
        ("chat/a/b", ("chat/a/b", "chat/*", "*")),
        ("@user/ada", ("@user/ada", "@user/*", "*")),
        ("/", ("/", "/*", "*")),
    ],
)
def test_the_items_of_a_rooms_settings(room: str, expected: tuple[str, ...]) -> None:
    assert settings_names(room) == expected


@pytest.mark.parametrize(("attribute", "maximum"), [("history_seconds", 604_800), ("presence", 1_000)])
def test_limited_settings_outside_their_range_count_as_their_default(attribute: str, maximum: int) -> None:
    damaged: list[str] = []
    for value, expected in ((0, 0), (maximum, maximum), (maximum + 1, 0), (-1, 0)):
        item = SettingsItem.from_item({attribute: {"N": str(value)}}, damaged.append)
        assert getattr(item, attribute) == expected
    assert damaged == [attribute] * 2


@pytest.mark.parametrize(
    ("value", "count"),
    [
        ({"N": "1000000000"}, 1_000),
        ({"N": "1001"}, 1_000),
        ({"N": "0"}, 1),
        ({"N": "-7"}, 1),
        ({"N": "2.5"}, 2),
        ({"N": "many"}, 1),
        ({"S": "8"}, 8),
        ({"S": "eight"}, 1),
        ({"BOOL": True}, 1),
    ],
)
def test_damaged_settings_are_read_as_far_as_possible(value: dict[str, object], count: int) -> None:
    damaged: list[str] = []
    assert SettingsItem.from_item({"shards": value}, damaged.append) == SettingsItem(count)
    assert damaged == ["shards"]


IN_MS, IN_SECONDS = 1_800_000_000_000, 1_800_000_000


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("connected_at_ms", lambda: table.connection_item("c=", connected_at_ms=IN_SECONDS)),
        ("joined_at_ms", lambda: table.membership_item("a", 0, "c=", joined_at_ms=IN_SECONDS, expires_at=IN_SECONDS)),
        ("expires_at", lambda: table.membership_item("a", 0, "c=", joined_at_ms=IN_MS, expires_at=IN_MS)),
        ("expires_at", lambda: table.joined_room_item("c=", "a", 0, expires_at=IN_MS)),
    ],
)
def test_items_are_made_only_with_times_in_their_units(name: str, make: Callable[[], table.Item]) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: \d+ is not a time in (milli)?seconds since the epoch"):
        make()
    item = table.membership_item("a", 0, "c=", joined_at_ms=IN_MS, expires_at=IN_SECONDS)
    assert (item["joined_at_ms"], item["expires_at"]) == ({"N": str(IN_MS)}, {"N": str(IN_SECONDS)})


@pytest.mark.parametrize("count", [1, 2, 1_000])
def test_settings_within_the_range_are_not_damaged(count: int) -> None:
    damaged: list[str] = []
    item = {"shards": {"N": str(count)}, "join_shards": {"N": str(count)}, "others": {"S": "x"}}
    assert SettingsItem.from_item(item, damaged.append) == SettingsItem(count, count)
    assert not damaged


@given(connection_ids(), st.lists(st.tuples(near_names | names(), shards), max_size=60))
def test_removal_deletes_every_membership_before_its_joined_room(
    connection_id: str, joined: list[tuple[str, int]]
) -> None:
    items = [table.joined_room_item(connection_id, room, shard, expires_at=1) for room, shard in joined]
    batches = list(table.removal_batches(connection_id, items))
    assert all(1 <= len(batch) <= table.MAX_BATCH_WRITE for batch in batches)
    removed = [request["DeleteRequest"]["Key"] for batch in batches for request in batch]
    expected = []
    for room, shard in joined:
        expected.append(table.key(table.room_pk(room, shard), connection_id))
        expected.append(table.key(table.connection_pk(connection_id), table.joined_room_sk(room)))
    assert removed == expected


def test_an_unreadable_shard_does_not_prevent_the_removal_of_other_rooms() -> None:
    broken = {**table.joined_room_item("c=", "a", 0, expires_at=1), "shard": {"S": "x"}}
    missing = {name: value for name, value in broken.items() if name != "shard"}
    well = table.joined_room_item("c=", "b", 3, expires_at=1)
    [batch] = table.removal_batches("c=", [broken, missing, well])
    assert [request["DeleteRequest"]["Key"]["pk"]["S"] for request in batch] == [
        "connection#c=",
        "connection#c=",
        "room#b#3",
        "connection#c=",
    ]
