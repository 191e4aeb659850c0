"""Poll SQS for the number of waiting messages. Only for monitoring: no decision depends on it."""

import asyncio
from typing import Final

import structlog

from worker.observe.metrics import Metrics
from worker.ports import DependencyError, MessageQueue

log = structlog.get_logger()

_POLL_SECONDS: Final = 15.0


async def poll_depth(queues: dict[str, MessageQueue], metrics: Metrics) -> None:
    """Run until cancelled. `queues` are keyed by their label in the metric. A queue that cannot be read is left out."""
    failing: set[str] = set()
    while True:
        for name, queue in queues.items():
            try:
                counts = await queue.count()
            except DependencyError as error:
                counts = {}
                if name not in failing:
                    log.warning("backlog.unknown", queue=name, reason=error.reason)
                    failing.add(name)
            else:
                failing.discard(name)
            metrics.queue_messages = {
                **{labels: count for labels, count in metrics.queue_messages.items() if labels[0] != name},
                **{(name, state): count for state, count in counts.items()},
            }
        await asyncio.sleep(_POLL_SECONDS)
