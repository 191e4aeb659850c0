"""The package as it is built: the same bytes every time, nothing else in it, and it works where nothing else is.

`make wheel-check` does the same with each extra, which needs an index of packages.
"""

import re
import sys
import tomllib
import zipfile
from pathlib import Path

import msgspec
import pytest

from deploy.wheel import check, smoke
from deploy.wheel.build import CHECKOUT, BuildFailed, Built, build, copy_sources
from deploy.wheel.check import LOCK, SMOKE, CheckFailed, Lock, build_twice, check_contents, create, extras_of, run

PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    pytest.importorskip("hatchling", reason="hatchling is not installed, it builds the package: make setup")
    return build_twice(tmp_path_factory.mktemp("wheel"))


def test_two_builds_have_the_same_bytes_also_with_a_time_of_their_own(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    later = build_twice(tmp_path)
    assert later.wheel.read_bytes() != built.wheel.read_bytes()
    with zipfile.ZipFile(later.wheel) as archive:
        assert {each.date_time[:3] for each in archive.infolist()} == {(2023, 11, 14)}


@pytest.mark.usefixtures("built")
def test_builds_that_differ_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_DIFFERENT", {"SOURCE_DATE_EPOCH": "1700000000"})
    with pytest.raises(CheckFailed, match="two builds of the wheel differ"):
        build_twice(tmp_path)


def test_other_sources_are_another_package(built: Built, tmp_path: Path) -> None:
    copy_sources(tmp_path / "sources")
    (tmp_path / "sources/gatecast/table.py").write_text("changed = True\n")
    changed = build(tmp_path / "sources", tmp_path / "dist")
    assert changed.wheel.read_bytes() != built.wheel.read_bytes()
    (tmp_path / "sources/pyproject.toml").write_text("[build-system]\n")
    with pytest.raises(BuildFailed):
        build(tmp_path / "sources", tmp_path / "none")


def test_it_has_its_licence_and_type_marker_and_nothing_else_of_the_checkout(built: Built, tmp_path: Path) -> None:
    check_contents(built)
    for foreign, missing in (("routes/handlers.py", None), (None, "gatecast/py.typed")):
        other = tmp_path / f"{missing is None}.whl"
        with zipfile.ZipFile(built.wheel) as source, zipfile.ZipFile(other, "w") as target:
            for name in source.namelist():
                if name != missing:
                    target.writestr(name, source.read(name))
            if foreign:
                target.writestr(foreign, "")
        with pytest.raises(CheckFailed, match=re.escape(foreign or missing or "")):
            check_contents(Built(other, built.sdist))


def test_it_works_in_an_empty_environment_with_what_it_depends_on(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHON", raising=False)
    create(tmp_path)
    python = str(tmp_path / "bin/python")
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install", "--quiet"]
    run([*pip, "--no-index", "--no-deps", str(built.wheel)])
    [packages] = tmp_path.glob("lib/python*/site-packages")
    assert PROJECT["dependencies"] == ["msgspec>=0.19"]
    (packages / "msgspec").symlink_to(Path(msgspec.__file__).parent)
    run([python, "-I", str(SMOKE)])
    with pytest.raises(CheckFailed, match="No module named 'botocore'"):
        run([python, "-I", str(SMOKE), "aws"])


def test_each_extra_is_tried(built: Built) -> None:
    extras = PROJECT["optional-dependencies"]
    assert set(extras_of(built.wheel)) == set(extras) == set(smoke.TRIED)


def test_what_the_package_and_its_extras_need_is_locked() -> None:
    locked = {pin.partition("==")[0] for pin in Lock(LOCK).pins}
    needed = [each for names in PROJECT["optional-dependencies"].values() for each in names]
    for each in ["hatchling", *needed, *PROJECT["dependencies"]]:
        assert re.split(r"[<>=~\[]", each)[0] in locked, f"{each} is not in {LOCK}: make lock"


def test_a_package_with_another_hash_is_not_that_of_the_lock(tmp_path: Path) -> None:
    one, two, three = ("1" * 64, "2" * 64, "3" * 64)
    path = tmp_path / "lock.txt"
    path.write_text(
        f"some-package==1.0 ; sys_platform == 'win32' \\\n    --hash=sha256:{one}\n"
        f"some-package==1.1 ; sys_platform != 'win32' \\\n    --hash=sha256:{two} \\\n    --hash=sha256:{three}\n"
    )
    lock = Lock(path)
    assert lock.pins == ["some-package==1.0 ; sys_platform == 'win32'", "some-package==1.1 ; sys_platform != 'win32'"]
    assert all(lock.has("Some_Package", each) for each in (one, two, three))
    assert not lock.has("some-package", "4" * 64)
    assert not lock.has("another", one)


def test_the_documents_name_the_wheel_as_it_is_built(built: Built) -> None:
    for name in ("README.md", "docs/reference-publishers.md"):
        assert f"dist/{built.wheel.name}[" in (CHECKOUT / name).read_text(), name
