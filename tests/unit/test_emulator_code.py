"""Handlers in folders of Python code: several folders with the same names, and code that changes."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gatecast.emulator.python_code import CodeFolder, InvalidHandler, PythonHandler

NAMES = ("first_app", "first_helper", "first_package")


@pytest.fixture(autouse=True)
def imports_as_before() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.partition(".")[0] in NAMES:
            del sys.modules[name]


def folder_with(path: Path, **files: str) -> CodeFolder:
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / f"{name}.py").write_text(text)
    return CodeFolder(path)


def returning(value: Any) -> str:
    return f"def handler(event, context):\n    return {value!r}\n"


def loaded(folder: CodeFolder, target: str = "first_app.handler") -> PythonHandler:
    handler = folder.handler(target)
    handler.load()
    return handler


def test_a_handler_is_imported_from_its_folder(tmp_path: Path) -> None:
    handler = loaded(folder_with(tmp_path, first_app=returning(1)))
    assert handler({}, None) == 1
    assert handler.__name__ == "handler"


@pytest.mark.parametrize("target", ["first_package.part.handler", "first_package/part.handler"])
def test_a_handler_may_be_in_a_package(tmp_path: Path, target: str) -> None:
    folder_with(tmp_path / "first_package", part=returning(2))
    assert loaded(CodeFolder(tmp_path), target)({}, None) == 2


def test_folders_have_modules_of_the_same_names(tmp_path: Path) -> None:
    """As most SAM projects have: app.py in each function's folder, and helpers beside it."""
    text = "import first_helper\ndef handler(event, context):\n    return first_helper.NAME\n"
    one = folder_with(tmp_path / "one", first_app=text, first_helper="NAME = 'one'\n")
    two = folder_with(tmp_path / "two", first_app=text, first_helper="NAME = 'two'\n")
    first, second = loaded(one), loaded(two)
    assert (first({}, None), second({}, None)) == ("one", "two")
    again = loaded(one)
    assert again({}, None) == "one"


def test_functions_of_one_folder_share_its_modules(tmp_path: Path) -> None:
    text = "SEEN = []\ndef one(event, context):\n    SEEN.append(1)\ndef two(event, context):\n    return SEEN\n"
    folder = folder_with(tmp_path, first_app=text)
    one, two = loaded(folder, "first_app.one"), loaded(folder, "first_app.two")
    one({}, None)
    assert two({}, None) == [1]


@pytest.mark.parametrize(
    ("target", "text", "problem"),
    [
        ("handler", "", r"'handler': expected module\.function"),
        ("first-app.handler", "", r"expected module\.function"),
        ("first_nothing.handler", "", r"there is no module first_nothing in /"),
        ("first_app.nothing", returning(1), r"first_app has no function nothing"),
        ("first_app.VALUE", "VALUE = 1\n", r"first_app has no function VALUE"),
        ("first_app.handler", "import first_missing\n", r"there is no module first_missing"),
        ("first_app.handler", "def (\n", r"importing first_app failed: SyntaxError"),
        ("first_app.handler", "raise RuntimeError('no table')\n", r"failed: RuntimeError\('no table'\)"),
        ("first_app.handler", "import sys\nsys.exit(3)\n", r"failed: SystemExit\(3\)"),
    ],
)
def test_a_handler_that_cannot_be_imported_is_explained(tmp_path: Path, target: str, text: str, problem: str) -> None:
    with pytest.raises(InvalidHandler, match=problem) as raised:
        loaded(folder_with(tmp_path, first_app=text), target)
    assert "\n" not in str(raised.value)


def test_another_module_of_that_name_is_not_taken_for_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidHandler, match=r"another json was imported before, from /"):
        loaded(folder_with(tmp_path, json=returning(1)), "json.dumps")


def test_what_changes_is_imported_again(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, first_app=returning(1), first_helper="")
    handler = loaded(folder)
    assert not folder.reload_if_changed()
    (tmp_path / "first_app.py").write_text(returning(2))
    assert folder.reload_if_changed()
    assert handler({}, None) == 2
    assert not folder.reload_if_changed()


def test_a_change_of_what_a_handler_imports_counts(tmp_path: Path) -> None:
    text = "from first_package.part import NAME\ndef handler(event, context):\n    return NAME\n"
    folder_with(tmp_path / "first_package", part="NAME = 'old'\n")
    folder = folder_with(tmp_path, first_app=text)
    handler = loaded(folder)
    (tmp_path / "first_package" / "part.py").write_text("NAME = 'new'\n")
    assert folder.reload_if_changed()
    assert handler({}, None) == "new"


def test_a_change_that_breaks_a_handler_fails_its_invocations_until_it_is_fixed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = folder_with(tmp_path, first_app=returning(1))
    handler = loaded(folder)
    (tmp_path / "first_app.py").write_text("def handler(:\n")
    with caplog.at_level(logging.ERROR):
        assert folder.reload_if_changed()
    assert "SyntaxError" in caplog.text
    with pytest.raises(InvalidHandler, match="SyntaxError"):
        handler({}, None)
    assert not folder.reload_if_changed(), "it is reported once"
    (tmp_path / "first_app.py").write_text(returning(3))
    assert folder.reload_if_changed()
    assert handler({}, None) == 3


def test_a_file_that_is_away_for_a_moment_is_found_again(tmp_path: Path) -> None:
    """Editors replace files."""
    folder = folder_with(tmp_path, first_app=returning(1))
    handler = loaded(folder)
    (tmp_path / "first_app.py").unlink()
    folder.reload_if_changed()
    (tmp_path / "first_app.py").write_text(returning(4))
    assert folder.reload_if_changed()
    assert handler({}, None) == 4


def test_what_is_installed_inside_a_folder_is_imported_once(tmp_path: Path) -> None:
    installed = tmp_path / ".venv" / "site-packages"
    folder_with(installed, first_helper="NAME = 'installed'\n")
    sys.path.append(str(installed))
    text = "import first_helper\ndef handler(event, context):\n    return first_helper\n"
    folder = folder_with(tmp_path, first_app=text)
    handler = loaded(folder)
    before = handler({}, None)
    (tmp_path / "first_app.py").write_text(text + "# changed\n")
    assert folder.reload_if_changed()
    assert handler({}, None) is before
