"""The words that docs/glossary.md rules out occur nowhere, and its patterns find what they are for."""

import pytest

from tests.words import ExceptionRule, Source, files, find, read, rules

WORDS, EXCEPTIONS = rules()


@pytest.mark.parametrize("file", files())
def test_no_word_that_is_not_used(file: str) -> None:
    found = [str(each) for each in sorted(find(read(file), WORDS, EXCEPTIONS))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("x = 1\nclass MalformedAnswer: ...", 2, "answer"),
        ("def was_answered() -> None: ...", 1, "answered"),
        ("# The caller\n    # goes\n    # on.", 2, "goes on"),
        ("It is tried\nagain later.", 1, "tried again"),
        ("50 posts a second", 1, "posts a second"),
        ("_MOST_SHOWN = 50", 1, "_MOST_SHOWN"),
        ("    def of(cls) -> None: ...", 1, "def of("),
    ],
)
def test_a_word_is_found_in_names_and_across_lines(text: str, line: int, word: str) -> None:
    assert [(found.line, found.text) for found in find(Source("worker/example.py", text), WORDS, EXCEPTIONS)] == [
        (line, word)
    ]


@pytest.mark.parametrize(
    "text",
    [
        "after a second, within a minute",
        "as long as it lasts; so many that none fits; so much as a byte",
        "goes on the queue",
        "Once a client reads again, it is told to wait.",
        "raise ConnectionRefusedError",
        "whatever the account rejects",
        "the most that is shown",
    ],
)
def test_plain_words_are_not_found(text: str) -> None:
    assert not list(find(Source("worker/example.py", text), WORDS, EXCEPTIONS))


@pytest.mark.parametrize("rule", EXCEPTIONS)
def test_every_exception_is_needed(rule: ExceptionRule) -> None:
    others = [each for each in EXCEPTIONS if each is not rule]
    sources = [read(file) for file in files()]
    assert any(
        len(list(find(source, WORDS, others))) > len(list(find(source, WORDS, EXCEPTIONS)))
        for source in sources
        if rule.text.search(source.words)
    ), "remove it from the glossary"
