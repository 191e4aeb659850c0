"""What documents name exists: files, sections, make targets, modules, and names of the code."""

import ast
import os
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
PACKAGES = ("gatecast", "routes", "worker", "local", "deploy", "bench", "tests")
FOLDERS = (*PACKAGES, "docs", "requirements", "clients", ".ci")
FILE = re.compile(r"[\w.*/-]+\.(?:py|md|yml|yaml|toml|sh|svg|html|js|c|h)")
MODULE = re.compile(rf"python -m ((?:{'|'.join(PACKAGES)})(?:\.\w+)*)")
DOTTED = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)(?:\(\))?")
NAME = re.compile(r"([A-Z][a-z0-9]+(?:[A-Z][a-z0-9]*)+|[a-z]+(?:_[a-z0-9]+)+|[A-Z]+(?:_[A-Z0-9]+)+)(?:\(\))?")
"""Of several words, for single ones may be anything."""
OTHERS = re.compile(r"AWS_\w+|OTEL_\w+|POWERTOOLS_\w+|LOCALSTACK_\w+|CloudFormation|ApproximateReceiveCount")
"""Names of AWS and of other programs that no file here mentions."""
HISTORY = ("CHANGELOG.md", "bench/RESULTS.md")
"""Documents that say what was the case: names in them may have changed since."""


@cache
def listed(*patterns: str) -> list[str]:
    """Files of the checkout, those included that are not committed yet."""
    found = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=CHECKOUT, capture_output=True, text=True, check=False,
    ).stdout.splitlines()  # fmt: skip
    return sorted(file for file in set(found) if (CHECKOUT / file).is_file())


def documents() -> list[str]:
    return listed("*.md") or [str(path.relative_to(CHECKOUT)) for path in CHECKOUT.glob("*.md")]


def sections(document: Path) -> Iterator[str]:
    """The anchors that GitHub gives a document's headings."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    seen: dict[str, int] = {}
    for heading in re.findall(r"^#+ +(.+)$", text, re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        yield f"{anchor}-{seen[anchor]}" if anchor in seen else anchor
        seen[anchor] = seen.get(anchor, 0) + 1


def in_backticks(name: str) -> set[str]:
    """The code spans of a document, without its code blocks and its tables of patterns."""
    text = re.sub(r"^```.*?^```", "", (CHECKOUT / name).read_text(), flags=re.MULTILINE | re.DOTALL)
    if name == "docs/glossary.md":
        text = text.partition("## Words that are not used")[0]
    return {" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)}


@cache
def words_of_the_code() -> frozenset[str]:
    """Every word in a file that is no document."""
    found: set[str] = set()
    for file in listed():
        if not file.endswith((".md", ".svg")) and not file.startswith("requirements/"):
            found.update(re.findall(r"\w+", (CHECKOUT / file).read_text(errors="replace")))
    return frozenset(found)


@cache
def strings_of_the_code() -> str:
    return "\n".join((CHECKOUT / file).read_text() for file in listed("*.py", "*.yml", "*.yaml"))


@cache
def members() -> dict[str, set[str]]:
    """The names in each class and in each module, by its name."""
    found: dict[str, set[str]] = {}
    for file in listed("*.py"):
        module = ast.parse((CHECKOUT / file).read_text())
        dotted = ".".join(Path(file).with_suffix("").parts).removesuffix(".__init__")
        found.setdefault(dotted, set()).update(names_in(module))
        for node in ast.walk(module):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, set()).update(names_in(node))
    return found


def names_in(node: ast.Module | ast.ClassDef) -> Iterator[str]:
    """What is defined, assigned or imported in a module or class, and the attributes of `self`.

    In a module, also what is imported for types only.
    """
    conditional = [each for found in node.body if isinstance(found, ast.If) for each in found.body]
    for each in ast.walk(node) if isinstance(node, ast.ClassDef) else [*node.body, *conditional]:
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield each.name
        elif isinstance(each, ast.Assign | ast.AnnAssign):
            for target in each.targets if isinstance(each, ast.Assign) else [each.target]:
                if isinstance(target, ast.Name):
                    yield target.id
                elif isinstance(target, ast.Attribute):
                    yield target.attr
        elif isinstance(each, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in each.names)


def is_file(document: str, span: str) -> bool:
    """From the checkout, from the document's folder, or the end of a file's path (`engine.py`)."""
    for folder in (CHECKOUT, (CHECKOUT / document).parent):
        if any(folder.glob(span.rstrip("/"))):
            return True
    return any(file.endswith(f"/{span}") for file in listed())


def is_known(dotted: str) -> bool:
    """A member of a class, a module or a name in one, or a text of the code, such as a log event."""
    owner, _, name = dotted.rpartition(".")
    if dotted in members() or dotted in strings_of_the_code():
        return True
    if owner in members():
        return name in members()[owner]
    return (CHECKOUT / dotted.replace(".", "/")).is_dir()


def unknown(document: str) -> Iterator[str]:
    """The code spans of a document that look like a path or a name and are none."""
    for span in sorted(in_backticks(document)):
        for module in MODULE.findall(span):
            if module not in members() and f"{module}.__main__" not in members():
                yield span
        if FILE.fullmatch(span) or re.fullmatch(rf"(?:{'|'.join(map(re.escape, FOLDERS))})/[\w.*/-]*", span):
            if not is_file(document, span):
                yield span
        elif match := DOTTED.fullmatch(span):
            if not is_known(match[1]):
                yield span
        elif (match := NAME.fullmatch(span)) and not OTHERS.fullmatch(match[1]):
            name = match[1]
            if not {name, name.removesuffix("_total")} & words_of_the_code():
                yield span


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


def test_the_index_names_every_document() -> None:
    index = (CHECKOUT / "docs/README.md").read_text()
    linked = {os.path.normpath(f"docs/{link}") for link in re.findall(r"\]\(([^)\s#]+)", index)}
    documents = [file for file in listed("docs/*.md") if not file.startswith("docs/adr/0") and file != "docs/README.md"]
    assert "docs/architecture.md" in documents
    assert not set(documents) - linked


@pytest.mark.parametrize("name", documents())
def test_make_knows_the_targets_that_are_named(name: str) -> None:
    places = {CHECKOUT, (CHECKOUT / name).parent}
    makefile = "\n".join((place / "Makefile").read_text() for place in places if (place / "Makefile").exists())
    for target in re.findall(r"(?:`|^)make ([a-z][a-z-]+)", (CHECKOUT / name).read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("name", [each for each in documents() if each not in HISTORY])
def test_paths_and_names_exist(name: str) -> None:
    assert not list(unknown(name))


@pytest.mark.parametrize(
    "span",
    ["worker/decisions/none.py", "none.py", "Fanout.nothing", "NoSuchThing", "no_such_name", "worker.none",
     "dependency.none", "GATECAST_NO_SUCH_SETTING", "python -m worker.none"],
)  # fmt: skip
def test_what_does_not_exist_is_found(span: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.in_backticks", lambda _: {span})
    monkeypatch.setattr(f"{__name__}.words_of_the_code", lambda: frozenset({"Fanout"}))
    monkeypatch.setattr(f"{__name__}.strings_of_the_code", str)
    assert list(unknown("README.md")) == [span]


@pytest.mark.parametrize(
    "span", ["worker/delivery/engine.py", "engine.py", "worker/decisions/", "worker.redrive", "Publisher.publish",
             "gatecast.queue_message", "dependency.failing", "python -m bench.rate_model", "join", "prefix/*", "a/b"],
)  # fmt: skip
def test_what_exists_is_known(span: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.in_backticks", lambda _: {span})
    assert not list(unknown("README.md"))
