"""How many messages wait, by asking SQS once in a while. Only for those who watch: nothing is decided by it."""

import asyncio
from typing import Final

import structlog

from worker.observe.metrics import Metrics
from worker.ports import DependencyError, MessageQueue

log = structlog.get_logger()

_ASK_SECONDS: Final = 15.0


async def poll_depth(queues: dict[str, MessageQueue], metrics: Metrics) -> None:
    """Until cancelled. `queues` by the name that their metric has. What cannot be counted is left out."""
    failing: set[str] = set()
    while True:
        for name, queue in queues.items():
            try:
                counts = await queue.count()
            except DependencyError as error:
                counts = {}
                if name not in failing:
                    log.warning("backlog.unknown", queue=name, reason=error.code)
                    failing.add(name)
            else:
                failing.discard(name)
            metrics.queue_messages = {
                **{labels: count for labels, count in metrics.queue_messages.items() if labels[0] != name},
                **{(name, state): count for state, count in counts.items()},
            }
        await asyncio.sleep(_ASK_SECONDS)
