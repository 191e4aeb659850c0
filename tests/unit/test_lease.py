"""Leases: when they are extended, when they count as lost, and when a broadcast is asked to stop. In virtual time."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

import pytest

from tests.pipeline_doubles import VISIBILITY_SECONDS, message, now
from tests.simulation import EPOCH, run
from worker.observe.health import Health
from worker.pipeline.lease import MAX_LEASE_SECONDS, Lease, LeaseKeeper, LeaseState
from worker.ports import DependencyError, MessageQueue, PortError, StaleReceipt

SQS_MAX_SECONDS = 12 * 3600


class Queue:
    """Records extensions. `errors` by receipt handle; `failure` is raised by every call; `hangs` never returns."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, list[str], int]] = []
        self.errors: dict[str, PortError] = {}
        self.failure: DependencyError | None = None
        self.hangs = False
        self.call_seconds = 0.0

    async def change_visibility(self, receipt_handles: Sequence[str], seconds: int) -> list[PortError | None]:
        self.calls.append((now(), list(receipt_handles), seconds))
        if self.hangs:
            await asyncio.Event().wait()
        if self.failure is not None:
            raise self.failure
        await asyncio.sleep(self.call_seconds)
        return [self.errors.get(handle) for handle in receipt_handles]


class LeaseFixture:
    """A lease keeper and its queue."""

    def __init__(self, visibility_seconds: int = VISIBILITY_SECONDS) -> None:
        self.queue = Queue()
        self.outcomes = dict.fromkeys(("extended", "failed", "lost"), 0)
        self.health = Health(clock=now)
        self.keeper = LeaseKeeper(
            cast(MessageQueue, self.queue),
            visibility_seconds=visibility_seconds,
            health=self.health,
            outcomes=self.outcomes,
            clock=now,
        )

    def acquire(self, *names: str) -> list[Lease]:
        return self.keeper.acquire([message(name) for name in names])


def run_keeper(
    script: Callable[[LeaseFixture], Coroutine[Any, Any, None]], *, visibility_seconds: int = VISIBILITY_SECONDS
) -> LeaseFixture:
    """Runs the script beside a lease keeper."""
    fixture: list[LeaseFixture] = []

    async def simulation() -> None:
        fixture.append(LeaseFixture(visibility_seconds))
        task = asyncio.create_task(fixture[0].keeper.run())
        await script(fixture[0])
        assert not task.done()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    run(simulation())
    return fixture[0]


def test_a_lease_is_extended_whenever_a_third_of_its_visibility_has_passed() -> None:
    async def script(fixture: LeaseFixture) -> None:
        [lease] = fixture.acquire("a")
        await asyncio.sleep(100)
        assert lease.state is LeaseState.HELD

    fixture = run_keeper(script)
    times = [at for at, _, _ in fixture.queue.calls]
    pauses = [later - earlier for earlier, later in zip([0.0, *times], times, strict=False)]
    assert all(VISIBILITY_SECONDS / 3 <= pause <= VISIBILITY_SECONDS / 3 + 1 for pause in pauses)
    assert {seconds for _, _, seconds in fixture.queue.calls} == {VISIBILITY_SECONDS}
    assert fixture.outcomes == {"extended": len(times), "failed": 0, "lost": 0}


def test_ten_leases_share_a_call() -> None:
    names = [f"m{number}" for number in range(25)]

    async def script(fixture: LeaseFixture) -> None:
        fixture.acquire(*names)
        await asyncio.sleep(VISIBILITY_SECONDS / 3 + 1)

    fixture = run_keeper(script)
    assert sorted(len(handles) for _, handles, _ in fixture.queue.calls) == [5, 10, 10]
    assert sorted(handle for _, handles, _ in fixture.queue.calls for handle in handles) == sorted(names)


def test_a_stale_receipt_handle_loses_its_lease_and_no_other() -> None:
    changes: list[str] = []

    async def script(fixture: LeaseFixture) -> None:
        fixture.queue.errors["a"] = StaleReceipt("ReceiptHandleIsInvalid")
        lost, held = fixture.acquire("a", "b")
        lost.on_change = partial(changes.append, "a")
        held.on_change = partial(changes.append, "b")
        await asyncio.sleep(60)
        assert (lost.state, held.state) == (LeaseState.LOST, LeaseState.HELD)

    fixture = run_keeper(script)
    assert changes == ["a"]
    assert fixture.outcomes["lost"] == 1
    assert sum("a" in handles for _, handles, _ in fixture.queue.calls) == 1, "a lost lease is not extended again"


@pytest.mark.parametrize("how", ["hangs", "fails"])
def test_a_lease_that_is_not_extended_in_time_is_lost_before_its_visibility_ends(how: str) -> None:
    states: list[LeaseState] = []

    async def script(fixture: LeaseFixture) -> None:
        [lease] = fixture.acquire("a")
        if how == "hangs":
            fixture.queue.hangs = True
        else:
            fixture.queue.failure = DependencyError("InternalError")
        await asyncio.sleep(VISIBILITY_SECONDS * 0.8)
        states.append(lease.state)
        assert "lease" in fixture.health.problems
        await asyncio.sleep(VISIBILITY_SECONDS * 0.2)
        states.append(lease.state)

    fixture = run_keeper(script)
    assert states == [LeaseState.HELD, LeaseState.LOST]
    assert fixture.outcomes["lost"] == 1
    assert fixture.outcomes["extended"] == 0
    assert len(fixture.queue.calls) >= 2, "there is time for another attempt"


def test_an_extension_lasts_from_the_start_of_its_call() -> None:
    """The response may take long, but SQS counts from when it received the request at the earliest."""

    async def script(fixture: LeaseFixture) -> None:
        fixture.queue.call_seconds = 3
        [lease] = fixture.acquire("a")
        await asyncio.sleep(20)
        assert lease.extended_at == fixture.queue.calls[-1][0]
        assert lease.ends_at < lease.extended_at + VISIBILITY_SECONDS

    run_keeper(script)


def test_an_error_for_a_message_acknowledged_meanwhile_is_ignored() -> None:
    async def script(fixture: LeaseFixture) -> None:
        [lease] = fixture.acquire("a")
        original = fixture.queue.change_visibility

        async def acknowledged_meanwhile(receipt_handles: Sequence[str], seconds: int) -> list[PortError | None]:
            fixture.keeper.drop(lease)
            return await original(receipt_handles, seconds)

        fixture.queue.errors["a"] = StaleReceipt("ReceiptHandleIsInvalid")
        fixture.queue.change_visibility = acknowledged_meanwhile  # type: ignore[method-assign]
        await asyncio.sleep(60)
        assert lease.state is LeaseState.HELD
        assert len(fixture.keeper) == 0

    fixture = run_keeper(script)
    assert len(fixture.queue.calls) == 1
    assert fixture.outcomes == {"extended": 0, "failed": 0, "lost": 0}


def test_near_twelve_hours_the_broadcast_is_asked_to_stop_and_no_extension_exceeds_the_limit_of_sqs() -> None:
    states: list[LeaseState] = []

    async def script(fixture: LeaseFixture) -> None:
        [lease] = fixture.acquire("a")
        lease.acquired_at -= MAX_LEASE_SECONDS - 60
        await asyncio.sleep(30)
        states.append(lease.state)
        await asyncio.sleep(1_500)
        states.append(lease.state)
        for at, _, seconds in fixture.queue.calls:
            assert at - lease.acquired_at + seconds < SQS_MAX_SECONDS

    fixture = run_keeper(script, visibility_seconds=3_000)
    assert states == [LeaseState.HELD, LeaseState.ENDING]
    assert fixture.queue.calls


def test_a_stop_is_requested_from_every_lease_once() -> None:
    async def script(fixture: LeaseFixture) -> None:
        changes: list[str] = []
        leases = fixture.acquire("a", "b")
        for lease in leases:
            lease.on_change = partial(changes.append, lease.message.id)
        fixture.keeper.request_stop_all()
        fixture.keeper.request_stop_all()
        assert sorted(changes) == ["a", "b"]
        assert {lease.state for lease in leases} == {LeaseState.ENDING}

    run_keeper(script)


def test_a_lost_lease_stays_lost() -> None:
    lease = Lease(message("a"), 0.0, VISIBILITY_SECONDS)
    lease.transition(LeaseState.LOST)
    lease.transition(LeaseState.ENDING)
    assert lease.state is LeaseState.LOST


def test_the_oldest_age_is_measured_from_publication() -> None:
    async def script(fixture: LeaseFixture) -> None:
        now_ms = EPOCH * 1000 + 5_000
        assert fixture.keeper.oldest_age_seconds(now_ms) == 0
        first, second = fixture.acquire("a", "b")
        assert fixture.keeper.oldest_age_seconds(now_ms) == 5
        second.published_at_ms -= 60_000  # a part is younger than its broadcast
        assert fixture.keeper.oldest_age_seconds(now_ms) == 65
        fixture.keeper.drop(second)
        assert fixture.keeper.oldest_age_seconds(now_ms) == 5
        assert first.state is LeaseState.HELD

    run_keeper(script)
