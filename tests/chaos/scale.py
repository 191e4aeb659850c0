"""The scale of the chaos tests: small in `make test`, full in `make chaos` (GATECAST_CHAOS=full)."""

import asyncio
import os
import random
from collections.abc import Coroutine
from typing import Any, Final

FULL: Final = os.environ.get("GATECAST_CHAOS") == "full"
MEMBERS: Final = 20_000 if FULL else 3_000
INTERRUPTIONS: Final = 20 if FULL else 3
SEED: Final = int(os.environ.get("GATECAST_CHAOS_SEED", "20"))


def rng(purpose: str) -> random.Random:
    """A random generator per purpose: the same in every run with the same seed, independent of other tests."""
    return random.Random(f"{SEED} {purpose}")


def interruption_points(purpose: str, number: int, members: int) -> list[int]:
    """Random delivery counts at which to interrupt, ascending: not in the first 1% of members nor in the last 5%."""
    return sorted(rng(purpose).sample(range(members // 100, members - members // 20), number))


async def run_all(*runs: Coroutine[Any, Any, None]) -> None:
    """Run concurrently at small scale, where most time is waiting; one by one at full scale, for comparable results."""
    errors: list[BaseException] = []
    for group in [[run] for run in runs] if FULL else [runs]:
        ended = await asyncio.gather(*group, return_exceptions=True)  # the other runs record their results nevertheless
        errors += [each for each in ended if isinstance(each, BaseException)]
    if errors:
        raise BaseExceptionGroup("runs failed", errors)
