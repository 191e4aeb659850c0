"""When a batch is sent, in virtual time: at once if the batcher is urgent and no call is in flight."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from tests.simulation import run
from worker.batcher import Batcher

CALL_SECONDS = 0.005
WAIT_SECONDS = 0.02


class Calls:
    """Records the time and the items of each call. A call takes `CALL_SECONDS`; the item -1 makes it fail."""

    def __init__(self) -> None:
        self.made: list[tuple[float, list[int]]] = []

    async def call(self, items: Sequence[int]) -> list[int]:
        self.made.append((round(asyncio.get_running_loop().time(), 4), list(items)))
        await asyncio.sleep(CALL_SECONDS)
        if -1 in items:
            raise OSError("broken")
        return [10 * item for item in items]


def calls_made(
    script: Callable[[Batcher[int, int]], Awaitable[None]], *, urgent: bool
) -> list[tuple[float, list[int]]]:
    calls = Calls()

    async def simulation() -> None:
        await script(Batcher(calls.call, max_items=3, wait_seconds=WAIT_SECONDS, urgent=urgent))

    run(simulation())
    return calls.made


async def submit(batcher: Batcher[int, int], *items: int) -> None:
    assert await asyncio.gather(*map(batcher.submit, items)) == [10 * item for item in items]


async def submit_later(batcher: Batcher[int, int], seconds: float, *items: int) -> None:
    await asyncio.sleep(seconds)
    await submit(batcher, *items)


@pytest.mark.parametrize(("urgent", "at"), [(True, 0.0), (False, WAIT_SECONDS)])
def test_items_of_one_event_loop_iteration_share_a_call(urgent: bool, at: float) -> None:
    assert calls_made(lambda batcher: submit(batcher, 1, 2), urgent=urgent) == [(at, [1, 2])]


def test_a_full_batch_is_sent_at_once() -> None:
    assert calls_made(lambda batcher: submit(batcher, 1, 2, 3), urgent=False) == [(0.0, [1, 2, 3])]


def test_while_a_call_is_in_flight_items_wait_to_share_the_next_one() -> None:
    async def script(batcher: Batcher[int, int]) -> None:
        await asyncio.gather(submit(batcher, 1), submit_later(batcher, 0.002, 2), submit_later(batcher, 0.01, 3))

    assert calls_made(script, urgent=True) == [(0.0, [1]), (0.002 + WAIT_SECONDS, [2, 3])]


def test_after_a_call_the_next_item_is_sent_at_once() -> None:
    async def script(batcher: Batcher[int, int]) -> None:
        await asyncio.gather(submit(batcher, 1), submit_later(batcher, 0.006, 2))

    assert calls_made(script, urgent=True) == [(0.0, [1]), (0.006, [2])]


def test_an_error_is_raised_to_every_caller_of_its_batch_and_to_no_other() -> None:
    async def script(batcher: Batcher[int, int]) -> None:
        abandoned = batcher.begin(1)
        with pytest.raises(OSError, match="broken"):
            await batcher.submit(-1)
        assert isinstance(abandoned.exception(), OSError)
        await submit(batcher, 2)

    assert calls_made(script, urgent=True) == [(0.0, [1, -1]), (CALL_SECONDS, [2])]


def test_a_cancelled_caller_does_not_affect_the_others() -> None:
    async def script(batcher: Batcher[int, int]) -> None:
        batcher.begin(1).cancel()
        assert await batcher.submit(2) == 20

    assert calls_made(script, urgent=True) == [(0.0, [1, 2])]
