"""Pages of members: of a room from its memberships, and of named connections with their dialects."""

import asyncio
import gc
from collections.abc import Sequence
from typing import cast

import pytest

from gatecast import Broadcast
from gatecast.frames import V1, V2
from tests.pipeline_doubles import FakeTable, ids
from worker.pipeline.pages import begin_page
from worker.ports import Connection, DependencyError, Member, MemberTable, Page


class Table(FakeTable):
    """Only some of the connections exist. `failures` are raised first."""

    def __init__(self, *members: str, missing: Sequence[str] = (), failures: Sequence[Exception] = ()) -> None:
        super().__init__(*members)
        self._missing = missing
        self._failures = list(failures)

    async def connections(self, connection_ids: Sequence[str]) -> dict[str, Connection]:
        if self._failures:
            raise self._failures.pop()
        found = await super().connections(connection_ids)
        return {each: connection for each, connection in found.items() if each not in self._missing}


async def read(table: FakeTable, broadcast: Broadcast, after: str = "") -> Page:
    return await begin_page(cast(MemberTable, table), broadcast, after)


async def test_the_page_of_a_room_comes_from_its_memberships() -> None:
    table = Table(*ids(150))
    table.frames["c0149="] = V2
    page = await read(table, Broadcast(id="one", room="lobby", data="x"), "c0098=")
    assert page.members[-1] == Member("c0149=", 0, V2)
    assert (len(page.members), page.after) == (51, None)
    assert not table.connections_read


async def test_named_connections_have_their_dialects_and_no_age() -> None:
    table = Table(missing=["b"])
    table.frames.update({"a": V2, "b": V2})
    page = await read(table, Broadcast(id="one", connections=("c", "a", "b", "a"), data="x"))
    assert page == Page([Member("c", None, V1), Member("a", None, V2), Member("b", None, V1)], None)


async def test_named_connections_are_read_in_pages_by_their_number() -> None:
    table = Table()
    broadcast = Broadcast(id="one", connections=tuple(ids(201)), data="x")
    after: str | None = ""
    found: list[tuple[int, str | None]] = []
    while after is not None:
        page = await read(table, broadcast, after)
        after = page.after
        found.append((len(page.members), after))
    assert found == [(100, "100"), (100, "200"), (1, None)]
    assert await read(table, broadcast, "201") == Page([], None)
    assert len(table.connections_read) == 3, "nothing is read if none is left"


async def test_a_page_that_fails_need_not_be_awaited(caplog: pytest.LogCaptureFixture) -> None:
    table = Table(failures=[DependencyError("broken")] * 2)
    broadcast = Broadcast(id="one", connections=("a",), data="x")
    with pytest.raises(DependencyError):
        await read(table, broadcast)
    begin_page(cast(MemberTable, table), broadcast)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    gc.collect()
    assert not caplog.records
    assert (await read(table, broadcast)).members == [Member("a", None, V1)]
