"""The words that are not used, as docs/glossary.md lists them, and where they occur. `make words` counts them."""

import fnmatch
import re
import subprocess
import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

CHECKOUT: Final = Path(__file__).parents[1]
GLOSSARY: Final = "docs/glossary.md"
SECTION: Final = "## Words that are not used"
NAMES: Final = (
    "*.py", "*.md", "*.js", "*.c", "*.sh", "*.yml", "*.yaml", "*.toml", "*.html", "*Makefile", "*Dockerfile", ".ci/run",
)  # fmt: skip
NOT_READ: Final = ("docs/licences.md", "requirements/*", "tests/words.py", "tests/unit/test_words.py")
"""Written by tools, or made of the words themselves."""
AREAS: Final = {"tests": ("tests/*",), "documents": ("*.md",), "code": ("*",)}
"""Where a file belongs: the first that matches."""
COUNTED: Final = {
    "answer": r"\b(?:un)?answer(?:s|ed|ing)?\b",
    "response, respond": r"\brespon(?:ses?|d|ds|ded|ding)\b",
    "whoever": r"\bwhoever\b",
    "retry": r"\bretr(?:y|ies|ied|ying)\b",
    "per": r"\bper\b",
}
"""A measure of the language as a whole."""
_COMMENT: Final = re.compile(r"^\s*(?:#+|//|\*|>|-)?\s*")
_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_CODE: Final = re.compile(r"`(.+?)`")


@dataclass(frozen=True, slots=True)
class Word:
    """A word that is not used. A `pattern` with capitals is matched against lines as they are."""

    name: str
    instead: str
    pattern: re.Pattern[str]

    @property
    def in_lines(self) -> bool:
        return bool(re.search(r"(?<!\\)[A-Z]", self.pattern.pattern)) or r"\(" in self.pattern.pattern


class ExceptionRule(NamedTuple):
    """Text that is allowed in the files that match."""

    file: str
    text: re.Pattern[str]


class Found(NamedTuple):
    file: str
    line: int
    word: str
    text: str
    instead: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text!r} ({self.word}): {self.instead}"


class Source:
    """A file's lines, and its words: lower case, names split into theirs, line ends as spaces."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.lines = _blank_rules(text).splitlines() if file == GLOSSARY else text.splitlines()
        self._starts: list[int] = []
        words: list[str] = []
        position = 0
        for line in self.lines:
            found = " ".join(_CAMEL.sub(" ", _COMMENT.sub("", line)).replace("_", " ").lower().split())
            self._starts.append(position)
            words.append(found)
            position += len(found) + 1
        self.words = " ".join(words)

    def line_at(self, position: int) -> int:
        """The number of the line of a position in `words`."""
        return bisect_right(self._starts, position)


def files() -> list[str]:
    """All texts of the checkout that people write, those included that are not committed yet."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=CHECKOUT, capture_output=True, text=True, check=False,
    ).stdout.splitlines()  # fmt: skip
    return sorted(
        file
        for file in set(listed)
        if _matches(file, NAMES) and not _matches(file, NOT_READ) and (CHECKOUT / file).exists()
    )


def read(file: str) -> Source:
    return Source(file, (CHECKOUT / file).read_text())


def rules() -> tuple[list[Word], list[ExceptionRule]]:
    """The two tables of the glossary."""
    section = (CHECKOUT / GLOSSARY).read_text().partition(SECTION)[2]
    words, _, exceptions = section.partition("### Exceptions")
    return (
        [Word(name, instead, _pattern(cell)) for name, instead, cell in _rows(words)],
        [ExceptionRule(file.strip("`"), _pattern(cell)) for file, cell, _ in _rows(exceptions)],
    )


def find(source: Source, words: Sequence[Word], exceptions: Sequence[ExceptionRule]) -> Iterator[Found]:
    """Every occurrence in one file, unless an exception covers it."""
    allowed = [rule.text for rule in exceptions if fnmatch.fnmatch(source.file, rule.file)]
    covered = [match.span() for text in allowed for match in text.finditer(source.words)]
    for word in words:
        if word.in_lines:
            for number, line in enumerate(source.lines, 1):
                for match in word.pattern.finditer(line):
                    if not any(text.search(line) for text in allowed):
                        yield Found(source.file, number, word.name, match[0], word.instead)
            continue
        for match in word.pattern.finditer(source.words):
            if not any(start < match.end() and match.start() < end for start, end in covered):
                yield Found(source.file, source.line_at(match.start()), word.name, match[0], word.instead)


def main() -> int:
    """Print how often each word occurs, by area; with file names as arguments, every occurrence in these files."""
    words, exceptions = rules()
    if sys.argv[1:]:
        for file in files():
            if _matches(file, [f"{argument}*" for argument in sys.argv[1:]]):
                for found in sorted(find(read(file), words, exceptions)):
                    print(found)  # noqa: T201
        return 0
    measured: dict[str, Counter[str]] = {name: Counter() for name in COUNTED}
    unwanted: dict[str, Counter[str]] = {word.name: Counter() for word in words}
    for file in files():
        source = read(file)
        for name, pattern in COUNTED.items():
            measured[name][_area(file)] += len(re.findall(pattern, source.words))
        for found in find(source, words, exceptions):
            unwanted[found.word][_area(file)] += 1
    _print_table("measure", measured)
    _print_table("not used", unwanted)
    return 0


def _print_table(title: str, counts: dict[str, Counter[str]]) -> None:
    row = "{:44}" + "{:>11}" * (len(AREAS) + 1)
    print(row.format(title, *AREAS, "all"))  # noqa: T201
    for name, by_area in counts.items():
        print(row.format(name, *(by_area[area] for area in AREAS), by_area.total()))  # noqa: T201
    print(row.format("all", *(sum(each[area] for each in counts.values()) for area in AREAS), ""), "\n")  # noqa: T201


def _area(file: str) -> str:
    return next(area for area, patterns in AREAS.items() if _matches(file, patterns))


def _matches(file: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(file, pattern) for pattern in patterns)


def _rows(table: str) -> Iterator[list[str]]:
    for line in table.splitlines():
        if line.startswith("| ") and _CODE.search(line):
            yield [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip("|"))]


def _pattern(cell: str) -> re.Pattern[str]:
    return re.compile(cell.strip("`"))


def _blank_rules(text: str) -> str:
    """The glossary without its tables of words that are not used, with as many lines."""
    head, section, rest = text.partition(SECTION)
    return head + section + re.sub(r"^\|.*$", "", rest, flags=re.MULTILINE)


if __name__ == "__main__":
    sys.exit(main())
