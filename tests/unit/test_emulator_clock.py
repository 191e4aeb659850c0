"""The clock that tests advance: timers that become due, and waits that end."""

import asyncio

import pytest

from gatecast.emulator.clock import Clock


async def test_advancing_makes_the_calls_that_become_due_in_their_order() -> None:
    clock = Clock()
    called: list[str] = []
    clock.call_later(7_200, lambda: called.append("two hours"))
    clock.call_later(600, lambda: called.append("ten minutes"))
    clock.call_later(86_400, lambda: called.append("a day"))
    before, before_ms = clock.monotonic(), clock.now_ms()
    clock.advance(7_200)
    assert called == ["ten minutes", "two hours"]
    assert clock.monotonic() - before >= 7_200
    assert clock.now_ms() - before_ms >= 7_200_000


async def test_a_call_that_was_cancelled_is_not_made() -> None:
    clock = Clock()
    called: list[str] = []
    timer = clock.call_later(10, lambda: called.append("called"))
    timer.cancel()
    clock.advance(20)
    assert called == []


async def test_a_timer_that_another_one_cancels_does_not_fire() -> None:
    clock = Clock()
    called: list[str] = []
    second = clock.call_later(2, lambda: called.append("second"))
    clock.call_later(1, second.cancel)
    clock.advance(3)
    assert called == []


async def test_what_sleeps_wakes_when_its_time_has_passed() -> None:
    clock = Clock()
    sleeping = asyncio.create_task(clock.sleep(3_600))
    await asyncio.sleep(0)
    clock.advance(3_599)
    await asyncio.sleep(0)
    assert not sleeping.done()
    clock.advance(1)
    await asyncio.wait_for(sleeping, 5)


async def test_a_wait_ends_with_its_future_or_with_its_time() -> None:
    clock = Clock()
    loop = asyncio.get_running_loop()
    ready, never = loop.create_future(), loop.create_future()
    ready.set_result(None)
    assert await clock.wait(ready, 10)
    waiting = asyncio.create_task(clock.wait(never, 29))
    await asyncio.sleep(0)
    clock.advance(29)
    assert await waiting is False
    assert not never.done(), "it continues"


async def test_without_advancing_real_time_passes() -> None:
    await asyncio.wait_for(Clock().sleep(0.01), 5)


def test_time_is_not_turned_back() -> None:
    with pytest.raises(ValueError, match="only be advanced"):
        Clock().advance(-1)
