"""What the broadcasts in progress use of the rest of the worker."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from worker.decisions.dearest_rooms import DearestRooms
from worker.delivery.engine import DeliveryEngine
from worker.observe.health import Health
from worker.observe.metrics import Metrics
from worker.pipeline.closer import Closer
from worker.pipeline.counts import Counts
from worker.pipeline.dead_letters import DeadLetters
from worker.pipeline.payloads import Payloads
from worker.pipeline.presence import Announcer
from worker.pipeline.reaper import Reaper
from worker.pipeline.receipts import Receipts
from worker.pipeline.sender import Sender
from worker.ports import MemberSource, ProgressStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What every run uses. `clock` returns monotonic seconds, `wall_clock` seconds since the epoch.

    `locator_prefix` is that of `ForeignMembers`, and empty if the members are in Gatecast's own table.
    """

    sender: Sender
    table: MemberSource
    locator_prefix: str = ""
    progress: ProgressStore
    dead_letters: DeadLetters
    engine: DeliveryEngine
    reaper: Reaper
    closer: Closer
    announcer: Announcer
    payloads: Payloads
    receipts: Receipts
    dearest_rooms: DearestRooms
    counts: Counts
    health: Health
    metrics: Metrics
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
