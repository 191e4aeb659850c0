"""Fixtures of the chaos tests: one crowded room for all of them, an arena for each."""

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from local.backend import Backend
from local.ministack import Ministack
from local.resources import Queues, create_table
from tests.chaos.arena import Arena, Room
from tests.chaos.rooms import connection_ids, write_members
from tests.chaos.sizes import MEMBERS


@pytest.fixture(scope="session")
def chaos_backend(ministack: Ministack) -> Backend:
    """A table of its own; every arena has its own queues."""
    backend = Backend(ministack, f"chaos-{uuid.uuid4().hex[:8]}", Queues("", ""))
    with backend.client("dynamodb") as dynamodb:
        create_table(dynamodb, backend.table)
    return backend


@pytest.fixture(scope="session")
def crowd(chaos_backend: Backend) -> Room:
    """The room that most broadcasts go to. Nobody in it may be reaped: other tests count on them."""
    room = Room("crowd", connection_ids(MEMBERS))
    with chaos_backend.client("dynamodb") as dynamodb:
        write_members(dynamodb, chaos_backend.table, room.name, room.ids, memberships_only=True)
    return room


@pytest.fixture
async def arena(chaos_backend: Backend, tmp_path: Path) -> AsyncIterator[Arena]:
    async with Arena.opened(chaos_backend, f"chaos-{uuid.uuid4().hex[:8]}", tmp_path) as opened:
        yield opened
