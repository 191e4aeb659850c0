"""What the documents lead to is there: files, sections, make targets."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


def documents() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "*.md"],  # noqa: S607 - git of the PATH
        cwd=CHECKOUT, capture_output=True, text=True, check=False,
    ).stdout.split()  # fmt: skip
    return listed or [str(path.relative_to(CHECKOUT)) for path in CHECKOUT.glob("*.md")]


def sections(document: Path) -> Iterator[str]:
    """The anchors that GitHub gives a document's headings."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    seen: dict[str, int] = {}
    for heading in re.findall(r"^#+ +(.+)$", text, re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        yield f"{anchor}-{seen[anchor]}" if anchor in seen else anchor
        seen[anchor] = seen.get(anchor, 0) + 1


@pytest.mark.parametrize("name", documents())
def test_links_lead_somewhere(name: str) -> None:
    document = CHECKOUT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = Path(os.path.normpath(document.parent / path)) if path else document
        assert target.exists(), link
        assert not anchor or anchor in set(sections(target)), link


@pytest.mark.parametrize("name", documents())
def test_make_knows_the_targets_that_are_named(name: str) -> None:
    places = {CHECKOUT, (CHECKOUT / name).parent}
    makefile = "\n".join((place / "Makefile").read_text() for place in places if (place / "Makefile").exists())
    for target in re.findall(r"(?:`|^)make ([a-z][a-z-]+)", (CHECKOUT / name).read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
