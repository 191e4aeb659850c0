"""Build the wheel and the sdist. Equal sources give equal bytes, whenever and wherever they are built.

The build backend comes from the environment of this program, by hash: another version of it may give other bytes. The
times in the archives are SOURCE_DATE_EPOCH or, without it, a constant of the backend.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

CHECKOUT: Final = Path(__file__).parents[2]
SOURCES: Final = ("pyproject.toml", "README.md", "LICENSE", "gatecast")
_PASSED_ON: Final = ("PATH", "SOURCE_DATE_EPOCH", "TMPDIR")


class BuildFailed(Exception):
    """The message is the backend's output."""


class Built(NamedTuple):
    """The files of one build."""

    wheel: Path
    sdist: Path


def copy_sources(target: Path) -> None:
    """Copy what the package is made from to a new folder, as new files."""
    target.mkdir(parents=True)
    for name in SOURCES:
        source = CHECKOUT / name
        if source.is_dir():
            shutil.copytree(
                source, target / name, ignore=shutil.ignore_patterns("__pycache__"), copy_function=shutil.copyfile
            )
        else:
            shutil.copyfile(source, target / name)


def build(sources: Path, target: Path, *, variables: Mapping[str, str] | None = None, umask: int = 0o022) -> Built:
    """Build both into the folder `target`. Raises BuildFailed.

    The backend sees few variables of the environment, and `variables`.
    """
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    ran = subprocess.run(  # noqa: S603 - ours
        [sys.executable, "-m", "hatchling", "build", "--directory", str(target)],
        cwd=sources, env={**environment, **(variables or {})}, umask=umask,
        text=True, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if ran.returncode:
        raise BuildFailed(ran.stdout.strip())
    [wheel], [sdist] = target.glob("*.whl"), target.glob("*.tar.gz")
    return Built(wheel, sdist)
