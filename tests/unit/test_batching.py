"""When a batch goes out, in virtual time: at once where something waits for it and there is no company."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from tests.simulation import run
from worker.batcher import Batcher

CALL_SECONDS = 0.005
WAIT_SECONDS = 0.02


class Calls:
    """What was called when. Each call takes a moment; -1 makes one fail."""

    def __init__(self) -> None:
        self.made: list[tuple[float, list[int]]] = []

    async def call(self, items: Sequence[int]) -> list[int]:
        self.made.append((round(asyncio.get_running_loop().time(), 4), list(items)))
        await asyncio.sleep(CALL_SECONDS)
        if -1 in items:
            raise OSError("broken")
        return [10 * item for item in items]


def played(script: Callable[[Batcher[int, int]], Awaitable[None]], *, urgent: bool) -> list[tuple[float, list[int]]]:
    calls = Calls()

    async def play() -> None:
        await script(Batcher(calls.call, most=3, wait_seconds=WAIT_SECONDS, urgent=urgent))

    run(play())
    return calls.made


async def ask(batcher: Batcher[int, int], *items: int) -> None:
    assert await asyncio.gather(*map(batcher.ask, items)) == [10 * item for item in items]


async def ask_at(batcher: Batcher[int, int], seconds: float, *items: int) -> None:
    await asyncio.sleep(seconds)
    await ask(batcher, *items)


@pytest.mark.parametrize(("urgent", "at"), [(True, 0.0), (False, WAIT_SECONDS)])
def test_what_is_asked_for_in_one_turn_shares_a_call(urgent: bool, at: float) -> None:
    assert played(lambda batcher: ask(batcher, 1, 2), urgent=urgent) == [(at, [1, 2])]


def test_a_full_batch_waits_for_nothing() -> None:
    assert played(lambda batcher: ask(batcher, 1, 2, 3), urgent=False) == [(0.0, [1, 2, 3])]


def test_beside_a_call_in_flight_company_is_waited_for() -> None:
    async def script(batcher: Batcher[int, int]) -> None:
        await asyncio.gather(ask(batcher, 1), ask_at(batcher, 0.002, 2), ask_at(batcher, 0.01, 3))

    assert played(script, urgent=True) == [(0.0, [1]), (0.002 + WAIT_SECONDS, [2, 3])]


def test_after_a_call_there_is_no_company() -> None:
    async def script(batcher: Batcher[int, int]) -> None:
        await asyncio.gather(ask(batcher, 1), ask_at(batcher, 0.006, 2))

    assert played(script, urgent=True) == [(0.0, [1]), (0.006, [2])]


def test_what_a_call_raises_each_of_its_askers_gets_and_nobody_else() -> None:
    async def script(batcher: Batcher[int, int]) -> None:
        abandoned = batcher.begin(1)
        with pytest.raises(OSError, match="broken"):
            await batcher.ask(-1)
        assert isinstance(abandoned.exception(), OSError)
        await ask(batcher, 2)

    assert played(script, urgent=True) == [(0.0, [1, -1]), (CALL_SECONDS, [2])]


def test_who_no_longer_waits_does_no_harm() -> None:
    async def script(batcher: Batcher[int, int]) -> None:
        batcher.begin(1).cancel()
        assert await batcher.ask(2) == 20

    assert played(script, urgent=True) == [(0.0, [1, 2])]
