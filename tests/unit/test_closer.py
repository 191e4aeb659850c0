"""Which expired connections are closed, how often, and what becomes of them. In virtual time, without an engine."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from structlog.testing import capture_logs

from gatecast import frames
from gatecast import table as keys
from tests.memory_stores import MemoryTable, TableState
from tests.simulation import EPOCH, LONG_AGO_MS, run
from worker.delivery.errands import Closing
from worker.observe.health import Health
from worker.observe.metrics import Metrics
from worker.pipeline.closer import CLOCK_DIFFERENCE_SECONDS, MAX_PENDING, REST_SECONDS, Closer
from worker.pipeline.removal import Membership
from worker.ports import DependencyError, Member

ROOM: Membership = ("room", 0)
FAREWELL = {"type": "closed", "code": "token_expired", "retry": True}


class Reaper:
    def __init__(self) -> None:
        self.offered: list[tuple[str, Membership | None, int | None, bool]] = []

    def offer(
        self, connection_id: str, membership: Membership | None, joined_at_ms: int | None = None, *, proven: bool
    ) -> None:
        self.offered.append((connection_id, membership, joined_at_ms, proven))

    def ids(self) -> list[str]:
        return [each[0] for each in self.offered]


class CloserHarness:
    """A closer whose engine is the test: it ends the closings in `closings`, or each at once with `status`."""

    def __init__(self) -> None:
        self.clock = asyncio.get_running_loop().time
        self.state = TableState()
        self.failing = False
        self.table = MemoryTable(self.state, wall_clock=self.wall_clock, before_call=self._before_call)
        self.calls = 0
        self.closings: dict[str, Closing] = {}
        self.status: int | None = None
        self.reaper = Reaper()
        self.metrics = Metrics(Health())
        self.closer = Closer(
            self.table,
            engine=self,
            reaper=self.reaper,  # type: ignore[arg-type]
            health=Health(clock=self.clock),
            metrics=self.metrics,
            clock=self.clock,
            wall_clock=self.wall_clock,
        )

    def wall_clock(self) -> float:
        return EPOCH + self.clock()

    async def _before_call(self, component: str, operation: str) -> None:
        assert (component, operation) == ("table", "connections")
        self.calls += 1
        await asyncio.sleep(0.005)
        if self.failing:
            raise DependencyError("broken")

    def connect(self, connection_id: str, *, expired_for: float) -> None:
        item = keys.connection_item(connection_id, connected_at_ms=LONG_AGO_MS)
        self.state.put({**item, "expires_at": {"N": str(int(self.wall_clock() - expired_for))}})

    def close(self, closing: Closing) -> None:
        assert closing.paced
        assert closing.connection_id not in self.closings
        self.closings[closing.connection_id] = closing
        if self.status is not None:
            self.end(closing.connection_id, self.status)

    def end(self, connection_id: str, status: int) -> None:
        self.closings.pop(connection_id).on_end(status, self.clock(), f"status {status}")

    def outcomes(self) -> dict[str, int]:
        return {outcome: count for outcome, count in self.metrics.expired_connections.items() if count}


def closing(script: Callable[[CloserHarness], Coroutine[Any, Any, None]]) -> CloserHarness:
    """Runs the script beside a closer, and then the closer alone for a minute."""
    harnesses: list[CloserHarness] = []

    async def simulation() -> None:
        harnesses.append(harness := CloserHarness())
        task = asyncio.create_task(harness.closer.run())
        await script(harness)
        await asyncio.sleep(60)
        assert not task.done()
        task.cancel()

    run(simulation())
    return harnesses[0]


def members(*ids: str, version: int = frames.V1) -> list[Member]:
    return [Member(each, LONG_AGO_MS, version) for each in ids]


@pytest.mark.parametrize(("version", "has_farewell"), [(frames.V1, False), (frames.V2, True)])
def test_only_clients_that_understand_frames_are_sent_one_before_they_are_closed(
    version: int, *, has_farewell: bool
) -> None:
    async def script(harness: CloserHarness) -> None:
        harness.connect("a=", expired_for=60)
        harness.closer.offer(members("a=", version=version), ROOM)
        await asyncio.sleep(1)
        farewell = harness.closings["a="].farewell
        assert farewell == (frames.closed("token_expired", retry=True) if has_farewell else b"")
        harness.end("a=", 204)

    harness = closing(script)
    assert harness.reaper.offered == [("a=", ROOM, None, True)]
    assert harness.outcomes() == {"closed": 1}


def test_a_connection_that_has_not_expired_itself_is_not_closed() -> None:
    """Another program may have written a membership that ends earlier."""

    async def script(harness: CloserHarness) -> None:
        harness.status = 204
        harness.connect("connected=", expired_for=-3_600)
        harness.connect("just expired=", expired_for=CLOCK_DIFFERENCE_SECONDS - 1)
        harness.connect("expired=", expired_for=CLOCK_DIFFERENCE_SECONDS + 1)
        harness.state.put(keys.key(keys.connection_pk("for ever="), keys.CONNECTION_SK))
        harness.closer.offer(members("connected=", "just expired=", "expired=", "for ever=", "removed="), ROOM)

    harness = closing(script)
    assert harness.reaper.ids() == ["expired=", "removed="]
    assert harness.outcomes() == {"closed": 2}


def test_a_connection_is_closed_once_however_many_broadcasts_find_it() -> None:
    async def script(harness: CloserHarness) -> None:
        for _ in range(500):
            harness.closer.offer(members("a=", "b="), ROOM)
            await asyncio.sleep(0.01)
        for each in ("a=", "b="):
            harness.end(each, 204)
        for _ in range(500):
            harness.closer.offer(members("a=", "b="), ROOM)
            await asyncio.sleep(0.01)
        assert not harness.closings

    harness = closing(script)
    assert harness.calls == 1
    assert harness.reaper.ids() == ["a=", "b="]


@pytest.mark.parametrize("status", [403, 429, 500, 0])
def test_a_connection_that_could_not_be_closed_stays_until_a_later_broadcast_finds_it(status: int) -> None:
    async def script(harness: CloserHarness) -> None:
        harness.status = status
        harness.closer.offer(members("a="), ROOM)
        await asyncio.sleep(1)
        assert harness.outcomes() == {"failed": 1}
        assert harness.reaper.offered == []
        harness.status = 204
        harness.closer.offer(members("a="), ROOM)
        await asyncio.sleep(REST_SECONDS)
        assert harness.reaper.offered == []
        harness.closer.offer(members("a="), ROOM)

    harness = closing(script)
    assert harness.reaper.ids() == ["a="]
    assert harness.outcomes() == {"failed": 1, "closed": 1}


@pytest.mark.parametrize("status", [410, 404])
def test_that_a_connection_does_not_exist_is_proven_only_by_an_endpoint_that_closes_others(status: int) -> None:
    async def script(harness: CloserHarness) -> None:
        for name, status_of_it in (("a=", status), ("b=", 204), ("c=", status)):
            harness.status = status_of_it
            harness.closer.offer(members(name), ROOM)
            await asyncio.sleep(1)

    harness = closing(script)
    assert harness.reaper.offered == [
        ("a=", ROOM, LONG_AGO_MS, False),
        ("b=", ROOM, None, True),
        ("c=", ROOM, LONG_AGO_MS, True),
    ]
    assert harness.outcomes() == {"closed": 1, "gone": 2}


def test_what_is_too_much_is_dropped_and_found_again() -> None:
    names = [f"c{number}=" for number in range(MAX_PENDING + 500)]

    async def script(harness: CloserHarness) -> None:
        harness.closer.offer(members(*names), ROOM)
        harness.status = 204
        await asyncio.sleep(60)
        assert harness.reaper.ids() == names[:MAX_PENDING]
        harness.closer.offer(members(*names[MAX_PENDING:]), ROOM)

    harness = closing(script)
    assert harness.reaper.ids() == names
    assert harness.calls == (MAX_PENDING + 500) / 100


def test_a_failing_table_is_retried() -> None:
    async def script(harness: CloserHarness) -> None:
        harness.status = 204
        harness.failing = True
        harness.closer.offer(members("a="), ROOM)
        await asyncio.sleep(30)
        assert harness.reaper.offered == []
        harness.failing = False

    harness = closing(script)
    assert harness.reaper.ids() == ["a="]


def test_connections_that_expire_one_by_one_are_one_line_per_minute() -> None:
    async def script(harness: CloserHarness) -> None:
        harness.status = 204
        for number in range(300):
            harness.closer.offer(members(f"c{number}="), ROOM)
            await asyncio.sleep(1)
        await asyncio.sleep(120)

    with capture_logs() as logs:
        closing(script)
    assert sum(each["closed"] for each in logs) == 300
    assert 5 <= len(logs) <= 7


def test_a_burst_is_one_line_in_the_log_and_the_first_failure_another() -> None:
    async def script(harness: CloserHarness) -> None:
        harness.closer.offer(members(*(f"c{number}=" for number in range(900))), ROOM)
        await asyncio.sleep(1)
        for number, name in enumerate(list(harness.closings)):
            harness.end(name, (204, 410, 403)[number % 3])
            await asyncio.sleep(0.005)

    with capture_logs() as logs:
        closing(script)
    assert logs == [
        {"event": "expired_connection.not_closed", "status": 403, "reason": "status 403", "log_level": "warning"},
        {"event": "expired_connections.closed", "closed": 300, "gone": 300, "failed": 300, "log_level": "info"},
    ]
