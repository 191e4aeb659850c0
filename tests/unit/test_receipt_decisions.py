"""Receipts: what is stored, what is billed, and whose they are. `test_receipt_schedules` explores the protocol."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatecast import Broadcast
from gatecast.broadcast import Presence
from gatecast.receipt import Receipt
from gatecast.room_settings import RoomSettings, SettingsItem
from worker.decisions.checkpoint import Checkpoint
from worker.decisions.parts import REMAINDER_PREFIX, UNDELIVERED_PREFIX, to_connections, to_shards
from worker.decisions.receipts import (
    ITSELF,
    ReceiptState,
    Sums,
    billed_units,
    part_name,
    receipt,
    room_of,
    shares_receipt,
    wants_receipt,
)

TO_ROOM = Broadcast(id="one", room="room", data="x")
COUNTS = st.integers(0, 2**40)


@given(
    sums=st.builds(Sums, *[COUNTS] * 7),
    handed_off=st.lists(st.text(min_size=1, max_size=20), max_size=3).map(tuple),
    milliseconds=st.none() | COUNTS,
)
def test_a_state_is_read_as_it_was_written(sums: Sums, handed_off: tuple[str, ...], milliseconds: int | None) -> None:
    state = ReceiptState(sums, 3, "claim", handed_off, milliseconds)
    encoded = state.encode("c5=", b"pending")
    assert ReceiptState.decode(encoded, "c5=", b"pending") == state
    assert state.has_ended == (milliseconds is not None)
    for cursor, pending in (("c6=", b"pending"), ("c5=", b"other")):
        assert ReceiptState.decode(encoded, cursor, pending) is None


@given(encoded=st.binary(max_size=40))
def test_a_state_that_cannot_be_read_is_none(encoded: bytes) -> None:
    assert ReceiptState.decode(encoded, "c5=", b"pending") is None
    pending = Checkpoint().encode_pending()
    assert Checkpoint.decode("c5=", pending, None, encoded).receipt is None


def test_the_state_of_an_ordinary_broadcast_is_small() -> None:
    assert len(ReceiptState(Sums(100_000, 500, 0, 0, 20, 104_000, 100_000), revision=200).encode("c5=", b"")) < 40


@pytest.mark.parametrize(
    ("payload_bytes", "units"), [(0, 1), (1, 1), (32_768, 1), (32_769, 2), (65_536, 2), (131_072, 4)]
)
def test_each_32_kb_started_is_a_unit(payload_bytes: int, units: int) -> None:
    assert billed_units(payload_bytes) == units


@pytest.mark.parametrize("setting", [True, False])
def test_the_broadcast_decides_over_the_setting(setting: bool) -> None:
    settings = RoomSettings(receipt=setting)
    assert wants_receipt(TO_ROOM, settings) is setting
    for own in (True, False):
        assert wants_receipt(msgspec.structs.replace(TO_ROOM, receipt=own), settings) is own
    presence = Broadcast(id="p", v=2, room="room", presence=Presence(joined=("ann",)), receipt=True)
    assert not wants_receipt(presence, settings)


@pytest.mark.parametrize(
    ("value", "expected", "damaged"),
    [({"BOOL": True}, True, []), ({"BOOL": False}, False, []), ({"S": "true"}, False, ["receipt"]), (None, None, [])],
)
def test_the_setting_is_true_or_false(value: object, expected: bool | None, damaged: list[str]) -> None:
    found: list[str] = []
    item = {} if value is None else {"receipt": value}
    assert SettingsItem.from_item({"pk": {"S": "x"}, **item}, found.append).receipt is expected
    assert found == damaged


def test_shards_and_remainders_share_the_receipt_and_dead_letters_have_none() -> None:
    broadcast = msgspec.structs.replace(TO_ROOM, receipt=True)
    remainder = to_connections(broadcast, ["a="], REMAINDER_PREFIX)
    for part in (*to_shards(broadcast, 2), remainder):
        assert wants_receipt(part, RoomSettings())
        assert shares_receipt(part, ReceiptState())
        assert room_of(part) == "room"
        assert part_name(part) == part.part
    letter = to_connections(broadcast, ["a="], UNDELIVERED_PREFIX)
    assert not wants_receipt(letter, RoomSettings())
    assert not shares_receipt(broadcast, ReceiptState())
    assert part_name(broadcast) == ITSELF
    assert len(ITSELF) > 24, "no part can have this name"


def test_a_receipt_is_one_json_object_with_these_fields() -> None:
    body = receipt(TO_ROOM, Sums(5, 1, 2, 3, 4, 40, 5), 1_500).encode()
    assert body == (
        '{"id":"one","room":"room","members":15,"delivered":5,"gone":1,"expired":2,"rejected":3,"undelivered":4,'
        '"conflated":0,"posts":40,"billed_units":5,"seconds":1.5}'
    )
    assert msgspec.json.decode(body, type=Receipt).members == 15
    assert '"room":null' in receipt(Broadcast(id="one", connections=("a",), data="x"), Sums(), 0).encode()
