"""`make wheel-check`: build the package twice, and try it in empty environments, one for each of its extras.

Packages come from the index for which pip is configured, only as wheels, and each must be one of the lock's, by its
hash. The Python of the environments is PYTHON, by default this one. dist/ holds the result.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from email.parser import Parser
from pathlib import Path
from typing import Final

from deploy.wheel.build import CHECKOUT, BuildFailed, Built, build, copy_sources

SMOKE: Final = Path(__file__).with_name("smoke.py")
LOCK: Final = CHECKOUT / "requirements" / "test.txt"
PYTEST: Final = {
    (): "def test_nothing():\n    pass\n",
    ("emulator",): (
        "def test_connecting(websocket_api):\n"
        "    assert websocket_api({'$connect': lambda *_: {'statusCode': 200}}).connect()\n"
    ),
}
"""Tests of other projects, by the extras that are installed: pytest finds the plugin by its entry point."""
_DIFFERENT: Final = {"TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "7", "LC_ALL": "C"}


class CheckFailed(Exception):
    """The message is for a person: what is wrong with the package, and what to do."""


class Lock:
    """The packages of a hashed requirements file."""

    def __init__(self, path: Path) -> None:
        lines = path.read_text().replace("\\\n", " ").splitlines()
        self.pins: Final = [line.split(" --hash=")[0].strip() for line in lines if line.strip()]
        self._hashes: dict[str, set[str]] = {}
        for line in lines:
            name = normalised(re.split(r"[=\s]", line, maxsplit=1)[0])
            self._hashes.setdefault(name, set()).update(re.findall(r"--hash=sha256:([0-9a-f]{64})", line))

    def has(self, name: str, sha256: str) -> bool:
        """Whether it has a file of the package with this hash."""
        return sha256 in self._hashes.get(normalised(name), ())


def normalised(name: str) -> str:
    """A package's name as indexes spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def build_twice(directory: Path) -> Built:
    """Build from two folders: other times and places, other permissions, another environment. Raises CheckFailed."""
    one, two = directory / "one", directory / "a longer name of a folder"
    copy_sources(one)
    copy_sources(two)
    for path in two.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
        path.chmod(0o700 if path.is_dir() else 0o600)
    first = build(one, directory / "first")
    second = build(two, directory / "second", variables=_DIFFERENT, umask=0o077)
    with tarfile.open(first.sdist) as archive:
        archive.extractall(directory / "unpacked", filter="data")
    [unpacked] = (directory / "unpacked").iterdir()
    third = build(unpacked, directory / "third")
    for name, others in (("wheel", (second.wheel, third.wheel)), ("sdist", (second.sdist, third.sdist))):
        if any(getattr(first, name).read_bytes() != other.read_bytes() for other in others):
            raise CheckFailed(f"two builds of the {name} differ: compare them with diffoscope, or unpacked")
    return first


def check_contents(built: Built) -> None:
    """Both have the package, its type marker and its licence, and nothing else of the checkout. Raises CheckFailed."""
    with zipfile.ZipFile(built.wheel) as archive:
        in_wheel = archive.namelist()
    [information] = {name.partition("/")[0] for name in in_wheel if ".dist-info/" in name}
    _expect(in_wheel, {"gatecast", information}, {"gatecast/py.typed", f"{information}/licenses/LICENSE"})
    with tarfile.open(built.sdist) as archive:
        in_sdist = [name.partition("/")[2] for name in archive.getnames()]
    files = {"PKG-INFO", "pyproject.toml", "README.md", "LICENSE", ".gitignore"}
    _expect(in_sdist, {"gatecast", *files}, {"gatecast/py.typed", "LICENSE"})


def _expect(names: Sequence[str], roots: set[str], required: set[str]) -> None:
    if foreign := sorted(name for name in names if name.partition("/")[0] not in roots):
        raise CheckFailed(f"the package contains what is no part of it: {', '.join(foreign[:5])}")
    if missing := sorted(required - set(names)):
        raise CheckFailed(f"the package lacks {', '.join(missing)}")


def extras_of(wheel: Path) -> list[str]:
    """The extras that the wheel's metadata declare."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = (each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode()).get_all("Provides-Extra", [])


def create(environment: Path) -> None:
    """Make an empty environment, without pip. Raises CheckFailed."""
    run([os.environ.get("PYTHON", sys.executable), "-m", "venv", "--without-pip", str(environment)])


def install(requirement: str, environment: Path, lock: Lock) -> None:
    """Install it with what it needs, and verify each package but our own. Raises CheckFailed."""
    pins, report = environment / "pins.txt", environment / "report.json"
    pins.write_text("\n".join(lock.pins))
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"), "--disable-pip-version-check"]
    options = ["--quiet", "--only-binary", ":all:", "--constraint", str(pins), "--report", str(report)]
    run([*pip, "install", *options, requirement])
    for each in json.loads(report.read_text())["install"]:
        name, sha256 = each["metadata"]["name"], each["download_info"]["archive_info"]["hashes"]["sha256"]
        if normalised(name) != "gatecast" and not lock.has(name, sha256):
            raise CheckFailed(
                f"{name} {each['metadata']['version']} is not in {LOCK.relative_to(CHECKOUT)} with this hash: name it"
                " in requirements/test.in, or in a file that this one includes, and run make lock"
            )
    run([*pip, "check"])


def run(command: Sequence[str], *, directory: Path | None = None, variables: Mapping[str, str] | None = None) -> None:
    """Raises CheckFailed with the command's output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PYTHON"))}
    ran = subprocess.run(  # noqa: S603 - ours
        command, cwd=directory, env={**environment, **(variables or {})}, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if ran.returncode:
        raise CheckFailed(f"{' '.join(command)}\n{ran.stdout.strip()}")


def check(directory: Path) -> Built:
    """All of it, in this empty folder. Returns the checked files. Raises CheckFailed and BuildFailed."""
    built, lock = build_twice(directory), Lock(LOCK)
    check_contents(built)
    say("two builds, and one from the sdist, have the same bytes")
    extras = extras_of(built.wheel)
    for chosen in ([], *([extra] for extra in extras), extras):
        environment = directory / f"environment-{'-'.join(chosen)}"
        python = str(environment / "bin" / "python")
        create(environment)
        brackets = f"[{','.join(chosen)}]" if chosen else ""
        install(f"{built.wheel}{brackets}", environment, lock)
        run([python, "-I", str(SMOKE), *chosen], directory=environment)
        say(f"gatecast{brackets} works")
        if test := PYTEST.get(tuple(chosen)):
            (environment / "test_project.py").write_text(test)
            install("pytest", environment, lock)
            run([python, "-I", "-m", "pytest", "-q", "-W", "error", "test_project.py"], directory=environment)
            say("... and its plugin of pytest")
        shutil.rmtree(environment)
    return built


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - output for a person


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="gatecast-wheel-") as directory:
        try:
            built = check(Path(directory))
        except (CheckFailed, BuildFailed) as error:
            print(error, file=sys.stderr)  # noqa: T201
            return 1
        target = CHECKOUT / "dist"
        target.mkdir(exist_ok=True)
        for path in built:
            shutil.copy(path, target)
            say(f"dist/{path.name} sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
