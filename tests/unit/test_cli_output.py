"""What commands print cannot control the terminal, and what is JSON is one line of it."""

import io
import json
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatecast.cli.failures import CommandFailed, WrongUsage
from gatecast.cli.options import check_name, seconds
from gatecast.cli.output import ascii_json, confirm, table, write, write_json


@given(st.recursive(st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(), st.lists))
def test_json_keeps_its_value_in_one_line_of_plain_ascii(value: object) -> None:
    printed = ascii_json(msgspec.json.encode(value).decode())
    assert printed.isascii()
    assert printed.isprintable()
    assert json.loads(printed) == value


def test_raw_json_keeps_its_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    write_json({"json": msgspec.Raw(b'{"n":\r\n\t1.10000000000000000001,"s":"\xc3\xa9\xf0\x9f\x98\x80\x7f"}')})
    printed = capsys.readouterr().out
    assert printed == '{"json":{"n":   1.10000000000000000001,"s":"\\u00e9\\ud83d\\ude00\\u007f"}}\n'


def test_text_of_others_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    write("a\x1b[2J\nb")
    assert capsys.readouterr().out == "a\\x1b[2J\\nb\n"


def test_columns_are_as_wide_as_necessary() -> None:
    assert table([("a", "bcd"), ("ef\n", "g")]) == ["a     bcd", "ef\\n  g"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("line", "agrees"), [("y\n", True), ("Yes\n", True), ("\n", False), ("no\n", False), ("", False)]
)
def test_a_confirmation_on_a_terminal(monkeypatch: pytest.MonkeyPatch, line: str, agrees: bool) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(line))
    if agrees:
        confirm("really?", yes=False)
        return
    with pytest.raises(CommandFailed, match="nothing was changed") as failed:
        confirm("really?", yes=False)
    assert failed.value.code == 1


def test_a_confirmation_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(WrongUsage, match=r"give --yes\Z"):
        confirm("really?", yes=False)
    confirm("really?", yes=True)


@pytest.mark.parametrize(("text", "value"), [("0s", 0), ("90s", 90), ("15m", 900), ("1h", 3_600), ("7d", 604_800)])
def test_durations(text: str, value: int) -> None:
    assert seconds("--for", text) == value


@pytest.mark.parametrize("text", ["", "1", "-1h", "1.5h", "1w", "9999d", "1h30m", "٣h"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(WrongUsage, match=r"--for is .* give a duration"):
        seconds("--for", text)


@pytest.mark.parametrize("name", ["", "a b", "é", "x" * 101])
def test_what_is_no_name_of_a_room(name: str) -> None:
    with pytest.raises(WrongUsage, match=r"ROOM is .* 1 to 100 characters"):
        check_name("ROOM", name)
    check_name("ROOM", "a/*")
