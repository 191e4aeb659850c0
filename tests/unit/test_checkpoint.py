"""The encoding of checkpoints, and when they are due."""

import msgspec
import pytest

from worker.decisions.checkpoint import SNAPSHOT_AFTER, WINDOW, Checkpoint, CheckpointSchedule


def test_a_checkpoint_survives_encoding_and_decoding() -> None:
    checkpoint = Checkpoint("m=", (("a=", 5), ("é/", None)))
    assert Checkpoint.decode(checkpoint.cursor, checkpoint.encode_pending()) == checkpoint


def test_the_dialects_of_pending_connections_survive_encoding_and_decoding() -> None:
    checkpoint = Checkpoint("m=", (("a=", 5), ("é/", None), ("z=", 7)), ("a=", "z="))
    assert Checkpoint.decode("m=", checkpoint.encode_pending(), checkpoint.encode_v2()) == checkpoint


def test_without_pending_v2_connections_a_checkpoint_has_no_dialects() -> None:
    assert Checkpoint("m=", (("a=", 5),)).encode_v2() is None


def test_dialects_older_than_the_pending_connections_hold_for_those_that_are_still_pending() -> None:
    """A worker of an earlier version does not write them, nor does one while no pending connection uses v2."""
    earlier = Checkpoint("m=", (("a=", 5), ("b=", 5), ("c=", 5)), ("a=", "c=")).encode_v2()
    later = Checkpoint("p=", (("c=", 5), ("p=", 5)))
    assert Checkpoint.decode("p=", later.encode_pending(), earlier).v2 == ("c=",)


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"x",
        *map(msgspec.msgpack.encode, ({"a": 1}, ["a", "a"], [""], [1], ["a", None], [*map(str, range(WINDOW + 1))])),
    ],
)
def test_damaged_dialects_are_an_error(damaged: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        Checkpoint.decode("m=", Checkpoint().encode_pending(), damaged)


def settle(checkpoint_schedule: CheckpointSchedule, deliveries: int) -> None:
    checkpoint_schedule.since_snapshot += deliveries
    checkpoint_schedule.since_written += deliveries


def test_checkpoints_are_due_after_a_number_of_deliveries_and_one_is_written_at_a_time() -> None:
    checkpoint_schedule = CheckpointSchedule(0.0)
    settle(checkpoint_schedule, SNAPSHOT_AFTER - 1)
    assert not checkpoint_schedule.due(0.0)
    settle(checkpoint_schedule, 1)
    assert checkpoint_schedule.due(0.0)
    checkpoint_schedule.snapshot(0.0)
    assert not checkpoint_schedule.due(100.0)
    assert checkpoint_schedule.since_written == SNAPSHOT_AFTER
    checkpoint_schedule.written()
    assert checkpoint_schedule.since_written == 0


def test_deliveries_settled_during_a_write_may_be_repeated() -> None:
    checkpoint_schedule = CheckpointSchedule(0.0)
    settle(checkpoint_schedule, SNAPSHOT_AFTER)
    checkpoint_schedule.snapshot(0.1)
    settle(checkpoint_schedule, WINDOW - SNAPSHOT_AFTER)
    assert checkpoint_schedule.since_written == WINDOW
    checkpoint_schedule.written()
    assert checkpoint_schedule.since_written == WINDOW - SNAPSHOT_AFTER


def test_a_slow_broadcast_is_checkpointed_every_second_if_it_makes_progress() -> None:
    checkpoint_schedule = CheckpointSchedule(0.0)
    assert not checkpoint_schedule.due(5.0)
    settle(checkpoint_schedule, 1)
    assert not checkpoint_schedule.due(0.9)
    assert checkpoint_schedule.due(1.0)
