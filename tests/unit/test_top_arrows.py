"""The live view is a tool for people: the worker does not know it, and its computing knows no input or output."""

import ast
from pathlib import Path

import pytest

WORKER = Path(__file__).parents[2] / "worker"
COMPUTING = ("samples", "figures", "view")
DOES_IO = {"asyncio", "socket", "time", "datetime", "aiohttp", "rich", "os", "sys"}


def imported_by(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


def test_the_worker_runs_without_it() -> None:
    modules = [path for path in WORKER.rglob("*.py") if WORKER / "top" not in path.parents]
    assert modules
    for path in modules:
        assert not {name for name in imported_by(path) if name.startswith(("worker.top", "rich"))}, path


def test_it_imports_nothing_of_the_worker() -> None:
    for path in (WORKER / "top").glob("*.py"):
        ours = {name for name in imported_by(path) if name.partition(".")[0] in ("worker", "gatecast")}
        assert all(name.startswith("worker.top") for name in ours), path


@pytest.mark.parametrize("module", COMPUTING)
def test_computing_knows_no_input_or_output(module: str) -> None:
    assert not {name.partition(".")[0] for name in imported_by(WORKER / "top" / f"{module}.py")} & DOES_IO
