"""The cache of room settings."""

from typing import Any

import pytest

from gatecast import table
from gatecast.room_settings import RoomSettings
from gatecast.rooms.backoff import Backoff
from gatecast.rooms.settings_cache import CACHE_SECONDS, RoomSettingsCache
from gatecast.table import Item
from routes.observing import OBSERVER
from routes.responses import Code, RequestRejected
from tests.routes_events import captured_log
from tests.scripted_dynamodb import Scripted

NOW = 1_000.0


def item(name: str, **attributes: Any) -> Item:
    return {**table.key(table.settings_pk(name), table.SETTINGS_SK), **attributes}


def found(*items: Item, unprocessed: list[str] | None = None) -> dict[str, Any]:
    keys = [table.key(table.settings_pk(name), table.SETTINGS_SK) for name in unprocessed or ()]
    return {"Responses": {"gatecast": list(items)}, "UnprocessedKeys": {"gatecast": {"Keys": keys}} if keys else {}}


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def cache(dynamodb: Scripted, clock: Clock | None = None) -> RoomSettingsCache:
    return RoomSettingsCache(
        dynamodb, "gatecast", Backoff(max_attempts=3, clock=clock or Clock(), sleep=lambda _: None), OBSERVER
    )


def asked(dynamodb: Scripted) -> list[list[str]]:
    """The names in each call."""
    return [
        [key["pk"]["S"].removeprefix("settings#") for key in arguments["RequestItems"]["gatecast"]["Keys"]]
        for arguments in dynamodb.arguments("batch_get_item")
    ]


def test_a_room_inherits_from_its_namespace_and_from_all_rooms() -> None:
    dynamodb = Scripted(
        batch_get_item=[
            found(
                item("*", presence={"N": "7"}, history_seconds={"N": "60"}),
                item("shop/*", presence={"N": "8"}),
                item("shop/1", join_shards={"N": "4"}),
            )
        ]
    )
    settings = cache(dynamodb).get(["shop/1", "shop/2", "lobby"])
    assert settings == {
        "shop/1": RoomSettings(4, 4, 60, 8),
        "shop/2": RoomSettings(1, 1, 60, 8),
        "lobby": RoomSettings(1, 1, 60, 7),
    }
    assert asked(dynamodb) == [["shop/1", "shop/*", "*", "shop/2", "lobby"]]


def test_what_is_cached_is_not_read_and_a_room_without_settings_costs_one_key() -> None:
    clock = Clock()
    dynamodb = Scripted(batch_get_item=[found()])
    settings = cache(dynamodb, clock)
    settings.get(["a"])
    clock.now += CACHE_SECONDS - 1
    settings.get(["a", "b"])
    settings.get(["a", "b"])
    assert asked(dynamodb) == [["a", "*"], ["b"]]
    clock.now += 1
    settings.get(["b"])
    assert asked(dynamodb)[2:] == [["*"]], "each item has an age of its own"


def test_a_join_of_25_rooms_reads_its_settings_with_one_call() -> None:
    dynamodb = Scripted(batch_get_item=[found()])
    cache(dynamodb).get([f"n{number}/room" for number in range(25)])
    assert [len(names) for names in asked(dynamodb)] == [51]


def test_a_hundred_keys_are_read_per_call() -> None:
    dynamodb = Scripted(batch_get_item=[found()])
    settings = cache(dynamodb).get([f"r{number}" for number in range(150)])
    assert [len(names) for names in asked(dynamodb)] == [100, 51]
    assert len(settings) == 150


def test_unprocessed_keys_are_retried() -> None:
    dynamodb = Scripted(
        batch_get_item=[found(item("a", shards={"N": "2"}), unprocessed=["*"]), found(item("*", presence={"N": "5"}))]
    )
    assert cache(dynamodb).get(["a"]) == {"a": RoomSettings(2, 1, 0, 5)}
    assert asked(dynamodb) == [["a", "*"], ["*"]]


def test_keys_that_stay_unprocessed_make_the_request_unavailable() -> None:
    dynamodb = Scripted(batch_get_item=[found(unprocessed=["a"])])
    with pytest.raises(RequestRejected) as rejection:
        cache(dynamodb).get(["a"])
    assert rejection.value.code is Code.UNAVAILABLE
    assert dynamodb.count("batch_get_item") == 3


def test_a_damaged_attribute_is_logged_once_counted_each_time_and_names_no_room(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POWERTOOLS_METRICS_DISABLED", raising=False)
    damaged = [item(room, presence={"S": "many"}, join_shards={"N": "2.5"}) for room in ("secret-1", "secret-2")]
    dynamodb = Scripted(batch_get_item=[found(*damaged)])
    with captured_log() as log:
        settings = cache(dynamodb).get(["secret-1", "secret-2"])
    assert settings["secret-1"] == RoomSettings(2, 2, 0, 0), "a wrong number of shards hides no member"
    assert log.getvalue().count("settings.damaged") == 1
    assert "secret" not in log.getvalue()
    printed = capsys.readouterr().out
    assert printed.count('"DamagedSettings":[2.0]') + printed.count('"DamagedSettings": [2.0]') == 2, printed
    assert "secret" not in printed


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gatecast.rooms.settings_cache.MAX_CACHED_ITEMS", 3)
    dynamodb = Scripted(batch_get_item=[found()])
    settings = cache(dynamodb)
    for number in range(10):
        settings.get([f"room-{number}"])
        assert len(settings._cached) <= 3
