import io
import logging
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from gatecast.printable import printable
from worker.observe import log


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lobby", "lobby"),
        ("größer 日本", "größer 日本"),
        ("\x1b[2Jgone\r\n2 resent", "\\x1b[2Jgone\\r\\n2 resent"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("one\u2028two\u2029three\x85", "one\\u2028two\\u2029three\\x85"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("\ud800", "\\ud800"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_what_a_terminal_would_interpret_is_escaped(text: str, expected: str) -> None:
    assert printable(text) == expected


@given(st.text())
def test_the_result_is_always_printable_and_one_line(text: str) -> None:
    assert printable(text).isprintable()
    assert len(printable(text).splitlines()) <= 1


def fail(message: str) -> None:
    raise ValueError(message)


def test_log_lines_for_people_escape_what_messages_contain(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    hostile = "a\x1b[31m\nforged.event"
    try:
        log.configure("info", "console")
        logger: Any = structlog.get_logger()
        logger.info("broadcast.completed", id=hostile, connections=[hostile], count=3)
        try:
            fail(hostile)
        except ValueError:
            logger.exception("broadcast.failed")
    finally:
        structlog.reset_defaults()
        root.handlers[:], root.level = handlers, level
    written = capsys.readouterr().out
    assert "\x1b[31m" not in written
    assert not [line for line in io.StringIO(written) if line.startswith("forged")]
    assert written.count("x1b[31m") == 3
