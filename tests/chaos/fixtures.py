"""Fixtures of the chaos tests: one large room shared by all of them, a harness per test."""

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from local.backend import Backend
from local.ministack import Ministack
from local.resources import Queues, create_table
from tests.chaos.harness import Harness, Room
from tests.chaos.scale import MEMBERS
from tests.members import connection_ids, write_members


@pytest.fixture(scope="session")
def chaos_backend(ministack: Ministack) -> Backend:
    """A table for the chaos tests; every harness has its own queues."""
    backend = Backend(ministack, f"chaos-{uuid.uuid4().hex[:8]}", Queues("", ""))
    with backend.client("dynamodb") as dynamodb:
        create_table(dynamodb, backend.table)
    return backend


@pytest.fixture(scope="session")
def crowd(chaos_backend: Backend) -> Room:
    """The room that most broadcasts go to. None of its members may be reaped, because other tests need them."""
    room = Room("crowd", connection_ids(MEMBERS))
    with chaos_backend.client("dynamodb") as dynamodb:
        write_members(dynamodb, chaos_backend.table, room.name, room.ids, memberships_only=True)
    return room


@pytest.fixture
async def harness(chaos_backend: Backend, tmp_path: Path) -> AsyncIterator[Harness]:
    async with Harness.open(chaos_backend, f"chaos-{uuid.uuid4().hex[:8]}", tmp_path) as opened:
        yield opened
