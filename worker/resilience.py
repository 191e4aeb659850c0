"""Retry a call to a dependency until it succeeds, with backoff, reporting each failure to health."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from worker.decisions.backoff import backoff_seconds
from worker.observe.health import Component, Health
from worker.ports import DependencyError

R = TypeVar("R")


async def retry_forever(component: Component, health: Health, call: Callable[[], Awaitable[R]]) -> R:
    """Returns what `call` returns once it succeeds. Errors other than DependencyError propagate."""
    attempts = 0
    while True:
        try:
            result = await call()
        except DependencyError as error:
            health.failed(component, error.reason)
            attempts += 1
            await asyncio.sleep(backoff_seconds(attempts, 0.5 + random.random() / 2))
        else:
            health.recovered(component)
            return result
