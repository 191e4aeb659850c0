"""The arrows between the rooms of the house point one way."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
ROOMS = ("gatecast", "routes", "worker", "local", "deploy")
MAY_IMPORT = {
    "gatecast": {"gatecast"},
    "routes": {"routes", "gatecast"},
    "worker": {"worker", "gatecast"},
    "deploy": {"deploy"},
    "local": {"local", "gatecast", "routes"},  # nothing of the worker: it must not share the worker's mistakes
}
PURE = (
    "retry",
    "rate",
    "checkpoint",
    "claims",
    "aws/progress_item",
    "fairness",
    "parts",
    "capacity",
    "admission",
    "delivery/stalled",
    "throttle_evidence",
    "delivery/outcome",
    "delivery/endpoint",
    "delivery/pacing",
)
DOES_IO = {"asyncio", "socket", "ssl", "select", "time", "random", "aiohttp", "aioboto3", "botocore", "structlog"}


def imported_by(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            yield node.module or ""


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    modules = list((CHECKOUT / room).rglob("*.py"))
    assert modules
    for path in modules:
        rooms = {name.partition(".")[0] for name in imported_by(path)} & set(ROOMS)
        assert rooms <= MAY_IMPORT[room], f"{path.relative_to(CHECKOUT)} imports {rooms - MAY_IMPORT[room]}"


@pytest.mark.parametrize("module", PURE)
def test_pure_decisions_know_no_input_or_output(module: str) -> None:
    path = CHECKOUT / "worker" / f"{module}.py"
    assert not {name.partition(".")[0] for name in imported_by(path)} & DOES_IO


def test_adapters_are_wired_in_one_place() -> None:
    """Who else knows the SDK than its adapters?"""
    knowing = {
        path.relative_to(CHECKOUT / "worker").as_posix()
        for path in (CHECKOUT / "worker").rglob("*.py")
        if {name.partition(".")[0] for name in imported_by(path)} & {"aioboto3", "aiobotocore", "botocore"}
    }
    assert {name for name in knowing if not name.startswith("aws/")} <= {"service.py", "perseverance.py"}
