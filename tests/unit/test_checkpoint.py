"""The encoding of checkpoints, and when they are due."""

from worker.decisions.checkpoint import SNAPSHOT_AFTER, WINDOW, Checkpoint, CheckpointSchedule


def test_a_checkpoint_survives_encoding_and_decoding() -> None:
    checkpoint = Checkpoint("m=", (("a=", 5), ("é/", None)))
    assert Checkpoint.decode(checkpoint.cursor, checkpoint.encode_pending()) == checkpoint


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
