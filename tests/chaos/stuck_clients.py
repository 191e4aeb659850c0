"""Stuck clients, whose buffers stay full: how the endpoint throttles them, and how the worker treated them."""

import itertools
import math
import time
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from gatecast.emulator.faults import THROTTLED, Rule
from tests.chaos.endpoint_model import Client
from tests.chaos.harness import Harness

CLOSE_SECONDS: Final = 60
"""A stuck client is closed at the latest this long after its first 429."""
_CLOSE_MARGIN_SECONDS: Final = 5.0
"""A message published less than this before a connection was closed may find it gone already."""


def stuck_rule(stuck: Iterable[str]) -> Rule:
    """Posts to these connections return 429, as if the clients did not read."""
    return Rule(fault=THROTTLED, only=frozenset(stuck))


def close_attempted(clients: Mapping[str, Client]) -> set[str]:
    """The connections that the worker tried to close."""
    return {each for each, client in clients.items() if client.deletions}


async def observed_clients(harness: Harness, stuck: Collection[str]) -> Mapping[str, Client]:
    """What the endpoint recorded of the stuck clients. Fails if the worker tried to close any other."""
    clients = await harness.endpoint.clients()
    assert close_attempted(clients) <= set(stuck), "others were closed"
    return {each: clients.get(each, Client()) for each in stuck}


async def closed_in_time(harness: Harness, stuck: Collection[str]) -> bool:
    """Whether all are closed within a minute after the first 429 to any of them."""

    async def all_closed() -> bool:
        return all(client.closed_at is not None for client in (await observed_clients(harness, stuck)).values())

    since = min(client.first_throttled_at or 0.0 for client in (await observed_clients(harness, stuck)).values())
    return await harness.holds_within(all_closed, seconds=max(1.0, since + CLOSE_SECONDS - time.monotonic()))


def seconds_stuck(client: Client) -> float:
    """Seconds from the first 429 to the close; infinite if it was never closed."""
    if client.closed_at is None or client.first_throttled_at is None:
        return math.inf
    return client.closed_at - client.first_throttled_at


def posts_beyond_one_per_second(client: Client) -> float:
    """Number of 429 responses beyond one per second of being stuck."""
    if client.first_throttled_at is None or client.last_throttled_at is None:
        return 0.0
    return client.throttled - (client.last_throttled_at - client.first_throttled_at)


def assert_missed_deliveries(
    misses: Mapping[tuple[str, str], int], published_at: Mapping[str, float], clients: Mapping[str, Client]
) -> None:
    """Dead letters name every delivery that these clients missed before they were closed, once, and no others."""
    others = set(misses) - set(itertools.product(published_at, clients))
    assert not others, "dead letters name deliveries that were not missed"
    due = {
        (data, each)
        for each, client in clients.items()
        for data, at in published_at.items()
        if at < (client.closed_at or math.inf) - _CLOSE_MARGIN_SECONDS
    }
    assert not due - set(misses), "dead letters omit missed deliveries"
    assert set(misses.values()) <= {1}, "dead letters name a delivery twice"
