"""How much chaos: little with every `make test`, all of it with `make chaos` (GATECAST_CHAOS=full)."""

import asyncio
import os
import random
from collections.abc import Coroutine
from typing import Any, Final

FULL: Final = os.environ.get("GATECAST_CHAOS") == "full"
MEMBERS: Final = 20_000 if FULL else 3_000
MOMENTS: Final = 20 if FULL else 3
SEED: Final = int(os.environ.get("GATECAST_CHAOS_SEED", "20"))


def rng(purpose: str) -> random.Random:
    """Dice that fall alike in every run with the same seed, whatever other tests threw before."""
    return random.Random(f"{SEED} {purpose}")


def moments(purpose: str, number: int, members: int) -> list[int]:
    """After how many deliveries something happens: random, in order, neither at the very start nor at the end."""
    return sorted(rng(purpose).sample(range(members // 100, members - members // 20), number))


async def side_by_side(*runs: Coroutine[Any, Any, None]) -> None:
    """Where time is short, all at once: most of it is waiting. Else one after the other, so that figures compare."""
    errors: list[BaseException] = []
    for some in [[run] for run in runs] if FULL else [runs]:
        ended = await asyncio.gather(*some, return_exceptions=True)  # the other runs are to have their figures, too
        errors += [each for each in ended if isinstance(each, BaseException)]
    if errors:
        raise BaseExceptionGroup("runs failed", errors)
