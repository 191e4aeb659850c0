"""The tasks of a worker: each has a name, and the error of one that has ended gives it."""

import ast
import asyncio
from pathlib import Path

import pytest

from tests.simulation import SimulatedWorker, World, run

WORKER = Path(__file__).parents[2] / "worker"


def unnamed_tasks(source: str) -> list[int]:
    """The lines on which a task is created without a name."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "create_task"
        and all(keyword.arg != "name" for keyword in node.keywords)
    ]


def test_every_task_has_a_name() -> None:
    found = {path.name: unnamed_tasks(path.read_text()) for path in WORKER.rglob("*.py")}
    assert not {name: lines for name, lines in found.items() if lines}


def test_a_task_without_a_name_is_found() -> None:
    assert unnamed_tasks("asyncio.create_task(work())\ngroup.create_task(work(), name='work')\n") == [1]


def test_the_error_names_the_task_that_has_ended() -> None:
    async def returns() -> None:
        await asyncio.sleep(1)

    async def simulation() -> None:
        worker = SimulatedWorker(World({}))
        await worker.kill()
        with pytest.raises(ExceptionGroup) as raised:
            await worker.real_worker.run(asyncio.Event(), credentials=returns())
        assert raised.group_contains(RuntimeError, match="'credentials' has ended")

    run(simulation())
