"""Clients whose buffers stay full: how the endpoint refuses them, and what became of them."""

import itertools
import math
import time
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from local.gateway.faults import THROTTLED, Rule
from tests.chaos.arena import Arena
from tests.chaos.counting import Client

CLOSE_SECONDS: Final = 60
"""Within so many after its first refusal a stuck client is closed."""
_ABOUT_THE_CLOSE_SECONDS: Final = 5.0
"""What was published so shortly before a connection was closed may find it gone already."""


def stuck_rule(stuck: Iterable[str]) -> Rule:
    """They do not read."""
    return Rule(fault=THROTTLED, only=frozenset(stuck))


def deleted(clients: Mapping[str, Client]) -> set[str]:
    """Whom the worker tried to close."""
    return {each for each, client in clients.items() if client.deletions}


async def stuck_clients(arena: Arena, stuck: Collection[str]) -> Mapping[str, Client]:
    """What became of them. Fails if anybody else was closed."""
    clients = await arena.endpoint.clients()
    assert deleted(clients) <= set(stuck), "others were closed"
    return {each: clients.get(each, Client()) for each in stuck}


async def closed_in_time(arena: Arena, stuck: Collection[str]) -> bool:
    """Whether all are closed within a minute after the first of them was refused."""

    async def all_closed() -> bool:
        return all(client.closed_at is not None for client in (await stuck_clients(arena, stuck)).values())

    since = min(client.first_throttled_at or 0.0 for client in (await stuck_clients(arena, stuck)).values())
    return await arena.within(all_closed, seconds=max(1.0, since + CLOSE_SECONDS - time.monotonic()))


def seconds_stuck(client: Client) -> float:
    """From the first refusal to the close; infinite if it was never closed."""
    if client.closed_at is None or client.first_throttled_at is None:
        return math.inf
    return client.closed_at - client.first_throttled_at


def posts_beyond_one_per_second(client: Client) -> float:
    """How many refusals there were beyond one for each second in which it was stuck."""
    if client.first_throttled_at is None or client.last_throttled_at is None:
        return 0.0
    return client.throttled - (client.last_throttled_at - client.first_throttled_at)


def assert_misses(
    misses: Mapping[tuple[str, str], int], published_at: Mapping[str, float], clients: Mapping[str, Client]
) -> None:
    """Dead letters name, once, all that these clients missed until they were closed, and nothing else."""
    others = set(misses) - set(itertools.product(published_at, clients))
    assert not others, "dead letters name what nobody missed"
    due = {
        (data, each)
        for each, client in clients.items()
        for data, at in published_at.items()
        if at < (client.closed_at or math.inf) - _ABOUT_THE_CLOSE_SECONDS
    }
    assert not due - set(misses), "dead letters leave out what was missed"
    assert set(misses.values()) <= {1}, "dead letters name something twice"
