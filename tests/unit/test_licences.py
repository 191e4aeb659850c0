"""The list of licences covers the packages that are shipped, and no others."""

import re
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
COPYLEFT = ("AGPL", "GPL", "SSPL")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_locked_package_is_listed_with_a_licence_that_may_be_shipped() -> None:
    locks = [(CHECKOUT / "requirements" / f"{name}.txt").read_text() for name in ("worker", "lambda", "otel")]
    packages = {name for lock in locks for name in re.findall(r"^([\w.-]+)==([^\\\n]+)", lock, re.MULTILINE)}
    here = {normal(name) for name, version in packages if ";" not in version}
    somewhere = {normal(name) for name, _ in packages}
    rows = re.findall(r"^\| ([\w.-]+) +\| (\S.*?) +\|$", (CHECKOUT / "docs" / "licences.md").read_text(), re.MULTILINE)
    listed = {normal(name): licence for name, licence in rows if name != "Name" and not name.startswith("--")}
    assert here <= listed.keys() <= somewhere
    assert "UNKNOWN" not in listed.values()
    assert not {name: licence for name, licence in listed.items() if any(each in licence for each in COPYLEFT)}
