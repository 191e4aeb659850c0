"""Workers are killed while they deliver broadcasts with receipts: each ends in one or more, equal, and true.

Some rooms are split into shards, some have members who are gone or do not read. What the receipts say is compared with
what the clients have counted.
"""

import asyncio
import time
import uuid
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import pytest
from msgspec import UNSET

from gatecast import Broadcast
from gatecast.emulator.faults import THROTTLED, Rule
from gatecast.receipt import Receipt
from gatecast.table import SETTINGS_SK, key, settings_pk
from local.backend import Backend
from tests.chaos.harness import Harness
from tests.chaos.results import RunResult, record
from tests.chaos.scale import FULL, rng
from tests.members import connection_ids, write_members


class Kind(NamedTuple):
    """A kind of room. `broadcasts` are published to it. The gone and the slow are part of its `members`."""

    broadcasts: int
    members: int
    shards: int = 1
    gone: int = 0
    slow: int = 0
    recovers: bool = True
    """Whether the slow ones read again after the kills."""


KINDS: Final = (
    {
        "small": Kind(60, 50, gone=3),
        "split": Kind(38, 2_000, 4, gone=20, slow=5, recovers=False),
        "slow": Kind(2, 4_000, slow=1_200),
    }
    if FULL
    else {"small": Kind(6, 50, gone=3), "split": Kind(4, 800, 4, gone=5, slow=3), "large": Kind(2, 2_500, gone=5)}
)
KILLS: Final = 20 if FULL else 3
PAUSE_SECONDS: Final = 4 if FULL else 1.5
TIMEOUT_SECONDS: Final = 600 if FULL else 90
IN_FLIGHT: Final = 64
SETTINGS: Final = {
    "GATECAST_MAX_POSTS_PER_SECOND": "3000" if FULL else "1500",
    "GATECAST_MAX_IN_FLIGHT": str(IN_FLIGHT),
    "GATECAST_SLOW_CLIENTS": "keep",  # one that has been closed would be gone for the worker that resumes
}


class Target(NamedTuple):
    """A room of one of the kinds."""

    kind: Kind
    room: str
    ids: list[str]
    slow: frozenset[str]
    gone: list[str]


def make_room(harness: Harness, name: str, kind: Kind) -> Target:
    room = f"{name}-{uuid.uuid4().hex[:8]}"
    ids = connection_ids(kind.members - kind.gone, f"{name}-")
    gone = [f"gone-{name}-{number}=" for number in range(kind.gone)]
    write_members(harness.dynamodb, harness.backend.table, room, ids + gone, shards=kind.shards, memberships_only=True)
    if kind.shards == 1:  # its broadcasts need not ask for a receipt
        settings = key(settings_pk(room), SETTINGS_SK)
        harness.dynamodb.put_item(TableName=harness.backend.table, Item={**settings, "receipt": {"BOOL": True}})
    return Target(
        kind, room, ids, frozenset(ids[:: max(1, len(ids) // kind.slow)][: kind.slow] if kind.slow else ()), gone
    )


async def throttle(harness: Harness, targets: Sequence[Target]) -> None:
    """Let exactly the slow members of these rooms not read."""
    slow = frozenset[str]().union(*(target.slow for target in targets))
    await harness.endpoint.configure(Rule(fault=THROTTLED, only=slow), latency_seconds=0.02)


async def kill_workers(harness: Harness) -> None:
    choices = rng("receipts")
    for _ in range(KILLS):
        await asyncio.sleep(PAUSE_SECONDS * (0.5 + choices.random()))
        worker = choices.choice([each for each in harness.workers if each.exit_code is None])
        await asyncio.to_thread(worker.kill)
        harness.launch(SETTINGS)


def receive_receipts(sqs: Any, url: str) -> dict[str, list[Receipt]]:
    found: dict[str, list[Receipt]] = defaultdict(list)
    while messages := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, VisibilityTimeout=600).get("Messages"):
        for message in messages:
            receipt = msgspec.json.decode(message["Body"], type=Receipt)
            found[receipt.id].append(receipt)
    return found


@pytest.mark.timeout(TIMEOUT_SECONDS + 120)
async def test_the_receipts_of_broadcasts_are_true_whatever_kills_their_workers(
    chaos_backend: Backend, tmp_path: Path
) -> None:
    name = f"receipts-{uuid.uuid4().hex[:8]}"
    async with Harness.open(chaos_backend, name, tmp_path) as harness:
        targets = [make_room(harness, name, kind) for name, kind in KINDS.items()]
        await throttle(harness, targets)
        for worker in [harness.launch(SETTINGS) for _ in range(2)]:
            await worker.ready()
        sent = {f"{target.room}-{number}": target for target in targets for number in range(target.kind.broadcasts)}
        for id_, target in sent.items():
            asks = UNSET if target.kind.shards == 1 else True
            harness.publish(Broadcast(id=id_, room=target.room, data=id_, receipt=asks))
        await kill_workers(harness)
        await throttle(harness, [target for target in targets if not target.kind.recovers])
        await harness.wait_until_drained(seconds=TIMEOUT_SECONDS)
        found = await asyncio.to_thread(receive_receipts, harness.sqs, harness.backend.queues.receipts_url)
        counted = {id_: (await harness.endpoint.counts(id_)).delivered for id_ in sent}
        record(
            RunResult(
                run=f"receipts of {len(sent)} broadcasts, {KILLS} workers killed",
                members=sum(len(target.ids) for target in sent.values()),
                missing=sum(len(set(target.ids) - target.slow - counted[id_].keys()) for id_, target in sent.items()),
                repeated=sum(sum(each.values()) - len(each) for each in counted.values()),
                allowed=KILLS * (IN_FLIGHT + sum(min(1_000, len(target.ids)) for target in sent.values())),
                dead_letters=harness.dead_letter_depth(),
                seconds=harness.elapsed_seconds,
                notes=f"{sum(map(len, found.values()))} receipts of {len(found)} broadcasts; members are deliveries",
            )
        )
    assert found.keys() == sent.keys()
    for id_, receipts in found.items():
        assert len(set(receipts)) == 1, receipts
        receipt, target = receipts[0], sent[id_]
        assert receipt.room == target.room
        assert receipt.delivered == receipt.billed_units == len(counted[id_])
        assert set(target.ids) - target.slow <= counted[id_].keys()
        assert receipt.undelivered == len(target.ids) - receipt.delivered
        assert receipt.gone <= len(target.gone), "those that were removed meanwhile are no members any more"
        assert receipt.members == receipt.delivered + receipt.undelivered + receipt.gone
        assert receipt.posts >= receipt.delivered, "a client that has been given up may be missed without a post"
        assert 0 < receipt.seconds < time.monotonic() - harness.started_at
