"""The pure core of the client: one room's messages in order."""

from collections.abc import Iterable

import pytest

from gatecast.client.events import Message, Recovered
from gatecast.client.sequence import MAX_FRUITLESS, Ask, Delivery, Page, RecentIds, RoomSequence

DAY_MS = 24 * 3600 * 1000


def message(offset: int | None, id: str | None = None, published_at_ms: int = 0) -> Message:  # noqa: A002
    return Message(id=id or f"m{offset}", room="r", offset=offset, published_at_ms=published_at_ms, data="x")


def messages(*offsets: int) -> list[Message]:
    return [message(offset) for offset in offsets]


def shown(events: Iterable[Delivery]) -> list[object]:
    """Offsets, or ids without one, and for an interruption whether it was recovered."""
    return [each.recovered if isinstance(each, Recovered) else each.offset or each.id for each in events]


def joined_at(position: int, **limits: int) -> RoomSequence:
    sequence = RoomSequence("r", **limits)
    assert sequence.joined(Ask(), Page(offset=position)) == []
    return sequence


def test_frames_in_order_are_delivered_at_once() -> None:
    sequence = joined_at(10)
    assert shown(sequence.receive(messages(11))) == [11]
    assert shown(sequence.receive(messages(12, 13))) == [12, 13]
    assert sequence.wants() is None


def test_frames_out_of_order_wait_for_the_earlier_ones() -> None:
    sequence = joined_at(10)
    assert shown(sequence.receive(messages(13, 12))) == []
    assert sequence.wants() == "later"
    assert shown(sequence.receive(messages(11))) == [11, 12, 13]
    assert sequence.wants() is None


def test_repeats_are_delivered_once() -> None:
    sequence = joined_at(10)
    sequence.receive(messages(11, 12))
    assert sequence.receive(messages(12, 11, 10, 3)) == []


def test_skipped_offsets_count_as_seen() -> None:
    sequence = joined_at(10)
    assert shown(sequence.receive(messages(13), [(14, 15)])) == []
    assert shown(sequence.receive([], [(11, 12)])) == [13]
    assert sequence.position == 15


def test_a_gap_before_skipped_offsets_is_read_if_it_stays() -> None:
    sequence = joined_at(10)
    sequence.receive([], [(13, 14)])
    assert sequence.wants() == "later"
    assert shown(sequence.filled(10, Page(offset=12, messages=messages(11, 12)))) == [11, 12]
    assert sequence.position == 14


def test_a_skipped_range_drops_what_another_connection_received() -> None:
    sequence = joined_at(10)
    sequence.receive(messages(12))
    assert shown(sequence.receive(messages(14), [(11, 13)])) == [14]


def test_what_arrives_before_the_first_join_has_its_response_belongs_to_the_past_up_to_its_offset() -> None:
    sequence = RoomSequence("r")
    assert sequence.receive(messages(12, 10)) == []
    assert shown(sequence.joined(Ask(), Page(offset=11))) == [12]


def test_the_latest_messages_are_delivered_with_the_first_join() -> None:
    sequence = RoomSequence("r", last=2)
    assert sequence.ask() == Ask(last=2)
    assert sequence.receive(messages(11, 12)) == []
    assert shown(sequence.joined(Ask(last=2), Page(offset=11, messages=messages(11, 10)))) == [10, 11, 12]
    assert sequence.ask() == Ask(since=12)


def test_a_first_join_with_a_position_reports_whether_it_was_recovered() -> None:
    sequence = RoomSequence("r", since=10)
    assert sequence.ask() == Ask(since=10)
    assert sequence.receive(messages(12)) == []
    page = Page(offset=11, messages=messages(11))
    assert shown(sequence.joined(sequence.ask(), page)) == [True, 11, 12]


def test_a_reconnect_merges_the_response_with_frames_that_arrived_before_it() -> None:
    sequence = joined_at(10)
    asked = sequence.ask()
    assert shown(sequence.receive(messages(11, 14))) == [11]
    assert shown(sequence.joined(asked, Page(offset=13, messages=messages(11, 12, 13)))) == [True, 12, 13, 14]


def test_messages_that_are_missing_are_reported_before_those_that_follow() -> None:
    sequence = joined_at(10)
    asked = sequence.ask()
    sequence.receive(messages(13))
    page = Page(offset=21, recovered=False, messages=messages(20, 21))
    events = sequence.joined(asked, page)
    assert shown(events) == [False, 13, 20, 21]
    assert events[0] == Recovered(room="r", recovered=False, after=10, before=20)


def test_nothing_is_missing_if_frames_brought_what_the_history_lost() -> None:
    sequence = joined_at(10)
    asked = sequence.ask()
    sequence.receive(messages(11, 12))
    page = Page(offset=13, recovered=False, messages=messages(13))
    assert shown(sequence.joined(asked, page)) == [True, 13]


def test_a_run_of_the_latest_messages_may_begin_with_skipped_offsets() -> None:
    sequence = joined_at(10)
    page = Page(offset=13, recovered=False, messages=messages(13), skipped=[(11, 12)])
    assert shown(sequence.joined(sequence.ask(), page)) == [True, 13]


def test_an_empty_history_moves_the_position_to_the_head() -> None:
    sequence = joined_at(10)
    assert shown(sequence.joined(sequence.ask(), Page(offset=30, recovered=False))) == [False]
    assert sequence.position == 30


def test_a_response_without_room_for_messages_reports_nothing_yet() -> None:
    """The rest is read at once, and says whether anything is missing."""
    sequence = joined_at(10)
    assert sequence.joined(sequence.ask(), Page(offset=10, recovered=False, more=True)) == []
    assert sequence.wants() == "now"
    assert shown(sequence.filled(10, Page(offset=30, recovered=False, messages=messages(30)))) == [False, 30]


def test_more_is_read_at_once_until_there_is_no_more() -> None:
    sequence = joined_at(10)
    sequence.joined(sequence.ask(), Page(offset=12, messages=messages(11, 12), more=True))
    sequence.receive(messages(15))
    assert sequence.wants() == "now"
    assert shown(sequence.filled(12, Page(offset=13, messages=messages(13), more=True))) == [13]
    assert sequence.wants() == "now"
    assert shown(sequence.filled(13, Page(offset=14, messages=messages(14)))) == [14, 15]
    assert sequence.wants() is None


def test_a_renewal_in_which_nothing_was_interrupted_is_no_event() -> None:
    sequence = joined_at(10)
    asked = sequence.ask()
    assert shown(sequence.joined(asked, Page(offset=11, messages=messages(11)), overlapping=True)) == [11]
    missing = Page(offset=20, recovered=False)
    assert shown(sequence.joined(sequence.ask(), missing, overlapping=True)) == [False]


def test_offsets_that_stay_out_are_given_up_with_a_report() -> None:
    sequence = joined_at(10)
    sequence.receive(messages(13))
    for _ in range(MAX_FRUITLESS - 1):
        assert sequence.filled(10, Page(offset=10)) == []
        assert sequence.wants() == "later"
    events = sequence.filled(10, Page(offset=10))
    assert shown(events) == [False, 13]
    assert events[0] == Recovered(room="r", recovered=False, after=10, before=13)


def test_held_messages_are_bounded_and_read_again_from_the_history() -> None:
    sequence = joined_at(10, max_held=2)
    sequence.receive(messages(14, 13, 12))
    assert sequence.wants() == "now"
    assert shown(sequence.receive(messages(11))) == [11, 12, 13]
    assert sequence.wants() == "now"
    assert shown(sequence.filled(13, Page(offset=14, messages=messages(14)))) == [14]
    assert sequence.wants() is None


def test_held_ranges_are_bounded() -> None:
    sequence = joined_at(10, max_held=2)
    sequence.receive([], [(20, 20), (30, 30), (40, 41)])
    assert sequence.wants() == "now"
    sequence.filled(10, Page(offset=41))
    assert sequence.wants() is None


def test_what_finds_no_room_is_read_later() -> None:
    sequence = joined_at(10)
    assert sequence.receive(messages(11), room_left=False) == []
    assert sequence.wants() == "now"
    assert shown(sequence.filled(10, Page(offset=11, messages=messages(11)))) == [11]


def test_a_rejected_position_is_given_up_with_a_report() -> None:
    sequence = joined_at(1_000)
    sequence.receive(messages(1_003))
    assert sequence.rejected()
    assert sequence.ask() == Ask(restart=True)
    assert not sequence.rejected()
    events = sequence.joined(sequence.ask(), Page(offset=5))
    assert events == [Recovered(room="r", recovered=False, after=1_000, before=6)]
    assert shown(sequence.receive(messages(6))) == [6]


def test_a_history_that_begins_again_below_the_position_is_reported() -> None:
    sequence = joined_at(1_000)
    assert shown(sequence.joined(sequence.ask(), Page(offset=5, recovered=False, messages=messages(5)))) == [False, 5]
    assert sequence.position == 5


def test_a_late_response_to_a_request_from_before_a_restart_changes_nothing() -> None:
    sequence = joined_at(1_000)
    sequence.rejected()
    sequence.joined(sequence.ask(), Page(offset=5))
    assert sequence.filled(1_000, Page(offset=1_001, messages=messages(1_001))) == []
    assert sequence.position == 5


def test_of_two_first_joins_at_once_the_second_only_shows_what_exists() -> None:
    sequence = joined_at(10)
    assert sequence.joined(Ask(), Page(offset=12)) == []
    assert sequence.wants() == "now"
    assert sequence.joined(Ask(), Page(offset=9)) == []
    assert sequence.position == 10


def test_without_history_messages_are_delivered_as_they_arrive_each_id_once() -> None:
    sequence = RoomSequence("r")
    assert sequence.joined(Ask(), None) == []
    assert shown(sequence.receive([message(None, "a"), message(None, "b"), message(None, "a")])) == ["a", "b"]
    assert sequence.ask() == Ask()
    assert sequence.wants() is None


def test_without_history_a_reconnect_may_have_missed_messages() -> None:
    sequence = RoomSequence("r")
    sequence.joined(Ask(), None)
    assert sequence.joined(sequence.ask(), None) == [Recovered(room="r", recovered=False)]
    assert sequence.joined(sequence.ask(), None, overlapping=True) == []


def test_without_history_what_finds_no_room_is_reported() -> None:
    sequence = RoomSequence("r")
    sequence.joined(Ask(), None)
    assert shown(sequence.receive([message(None, "a")], room_left=False)) == [False]


def test_offsets_in_a_room_that_was_joined_without_history_need_no_order() -> None:
    """Settings are cached for a while: a worker may give offsets that the join did not know of."""
    sequence = RoomSequence("r")
    sequence.joined(Ask(), None)
    assert shown(sequence.receive(messages(8, 7, 8))) == [8, 7]


def test_history_that_begins_is_reported_and_ordered_from_then_on() -> None:
    sequence = RoomSequence("r")
    sequence.joined(Ask(), None)
    sequence.receive(messages(7))
    assert shown(sequence.joined(sequence.ask(), Page(offset=7))) == [False]
    assert shown(sequence.receive(messages(9, 8))) == [8, 9]


def test_history_that_ends_is_reported_and_held_messages_are_delivered() -> None:
    sequence = joined_at(10)
    sequence.receive(messages(13, 12))
    assert shown(sequence.joined(sequence.ask(), None)) == [False, 12, 13]
    assert sequence.position is None


def test_a_position_in_a_room_without_history_is_reported() -> None:
    sequence = RoomSequence("r", since=5)
    assert sequence.joined(sequence.ask(), None) == [Recovered(room="r", recovered=False, after=5)]


def test_a_message_without_an_offset_is_delivered_in_a_room_with_history() -> None:
    """A broadcast that began before the room had history gets none."""
    sequence = joined_at(10)
    sequence.receive(messages(12))
    assert shown(sequence.receive([message(None, "late")])) == ["late"]


@pytest.mark.parametrize(("later_ms", "is_new"), [(DAY_MS - 1, False), (DAY_MS, True)])
def test_an_id_is_another_message_a_day_later(later_ms: int, is_new: bool) -> None:
    ids = RecentIds(10)
    assert ids.add(message(None, "daily", 5))
    assert ids.add(message(None, "daily", 5 + later_ms)) is is_new


def test_an_excluded_id_is_not_delivered_and_its_offset_counts_as_seen() -> None:
    sequence = joined_at(10)
    sequence.exclude("m11")
    page = Page(offset=12, messages=messages(11, 12))
    assert shown(sequence.joined(sequence.ask(), page)) == [True, 12]


def test_the_oldest_ids_are_forgotten() -> None:
    ids = RecentIds(2)
    assert [ids.add(message(None, each)) for each in ("a", "b", "a", "c", "a", "b")] == [
        True, True, False, True, False, True,
    ]  # fmt: skip
