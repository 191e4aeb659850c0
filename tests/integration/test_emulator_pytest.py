"""The plugin of pytest, in projects outside the checkout that have the package installed, and nothing of Gatecast."""

import contextlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "emulator.md").read_text()


def example(language: str, containing: str) -> str:
    """The one code block of docs/emulator.md that contains this text."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if containing in block]
    return str(found)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as an installer leaves it, with its entry points."""
    site = tmp_path_factory.mktemp("site")
    (site / "gatecast").symlink_to(ROOT / "gatecast")
    information = site / "gatecast-0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: gatecast\nVersion: 0\n")
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in each.items())
        for group, each in groups.items()
    ]
    (information / "entry_points.txt").write_text("\n".join(lines))
    return site


def run_pytest(directory: Path, installed: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PYTEST_"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio", *options],
        cwd=directory,
        env={**environment, "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_example_of_the_document_passes_as_it_stands(tmp_path: Path, installed: Path) -> None:
    (tmp_path / "chat.py").write_text(example("python", "def send(event"))
    (tmp_path / "test_chat.py").write_text(example("python", "import chat"))
    ran = run_pytest(tmp_path, installed, "-W", "error")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "3 passed" in ran.stdout


UNUSED = """
import sys

def test_nothing_is_imported():
    assert "gatecast.emulator.pytest_plugin" in sys.modules
    ours = {name for name in sys.modules if name.startswith("gatecast")}
    assert ours == {"gatecast", "gatecast.emulator", "gatecast.emulator.pytest_plugin"}
    assert not {"aiohttp", "msgspec", "yaml", "boto3"} & sys.modules.keys()
"""


OWN = """
import pytest

@pytest.fixture
def websocket_api():
    return "own"

def test_a_fixture_of_that_name_takes_precedence(websocket_api):
    assert websocket_api == "own"
"""


def test_where_it_is_not_used_nothing_is_imported(tmp_path: Path, installed: Path) -> None:
    (tmp_path / "test_unused.py").write_text(UNUSED)
    (tmp_path / "test_own.py").write_text(OWN)
    ran = run_pytest(tmp_path, installed, "-W", "error")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "2 passed" in ran.stdout


def test_without_the_extra_the_fixture_says_what_to_install(tmp_path: Path, installed: Path) -> None:
    (tmp_path / "conftest.py").write_text("import sys\nsys.modules['aiohttp'] = None\n")
    (tmp_path / "test_it.py").write_text("def test_it(websocket_api):\n    websocket_api({})\n")
    ran = run_pytest(tmp_path, installed)
    assert ran.returncode == 1
    assert "aiohttp is missing: websocket_api needs the extra gatecast[emulator]" in ran.stdout


def test_it_does_not_disturb_the_tests_of_this_checkout(installed: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit/test_backoff.py"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_extra_brings_along_everything_that_is_imported() -> None:
    program = (
        "import sys; from importlib.metadata import packages_distributions;"
        "import gatecast.emulator.testing, gatecast.emulator.command;"
        "of = packages_distributions();"
        "print(*{each for name in {name.partition('.')[0] for name in sys.modules} for each in of.get(name, ())})"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = {normalised(name) for name in ran.stdout.split()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = {*project["dependencies"], *project["optional-dependencies"]["emulator"]}
    assert {"aiohttp", "msgspec", "pyyaml"} <= imported <= with_dependencies(extra)


def with_dependencies(names: Iterable[str]) -> set[str]:
    """These packages and, as far as they are installed, those that they require."""
    found: set[str] = set()
    waiting = [normalised(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            with contextlib.suppress(metadata.PackageNotFoundError):
                waiting += [normalised(each) for each in metadata.requires(name) or ()]
    return found


def normalised(requirement: str) -> str:
    """The name in a requirement, such as `multidict<7.0,>=4.5`."""
    return re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-")
