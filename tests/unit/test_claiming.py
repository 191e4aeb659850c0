"""Where a claimed broadcast is resumed after the members have moved to another table."""

import asyncio

import pytest

from gatecast import Broadcast
from tests.pipeline_doubles import FakeProgress, FakeTable, Pipeline, claim, message
from worker.decisions.checkpoint import Checkpoint
from worker.decisions.receipts import ReceiptState, Sums
from worker.pipeline.claiming import claim_broadcast
from worker.ports import Claim

TO_ROOM = Broadcast(id="one", room="room", data="x", receipt=True)
OF_ANOTHER_TABLE = '!0123456789ab [{"sk":{"S":"c="}},""]'


@pytest.mark.parametrize(
    ("milliseconds", "starts_over"),
    [(None, True), (12, False)],
    ids=["members are left", "only the receipt is left"],
)
def test_a_checkpoint_of_another_table_is_of_use_only_for_the_receipt(
    milliseconds: int | None, *, starts_over: bool
) -> None:
    state = ReceiptState(Sums(delivered=3, posts=3, billed_units=3), milliseconds=milliseconds)
    start = Checkpoint(OF_ANOTHER_TABLE, receipt=state)
    pipeline = Pipeline(FakeTable(), FakeProgress(claim(start=start)))
    claimed = asyncio.run(claim_broadcast(TO_ROOM, message("m"), pipeline.services))
    assert isinstance(claimed, Claim)
    assert claimed.start == (Checkpoint() if starts_over else start)
