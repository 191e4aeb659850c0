"""Locators: what is stored, and where a broadcast may resume."""

import string

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.decisions.locator import Locator, can_resume, is_locator, prefix

HERE = prefix("connections", "byRoom")
attributes = st.dictionaries(
    st.text(max_size=5), st.one_of(st.builds(lambda text: {"S": text}, st.text(max_size=5)), st.just({"N": "7"}))
)


@given(attributes, st.text(max_size=5))
def test_a_locator_is_text_that_holds_it(found: dict[str, dict[str, str]], user: str) -> None:
    text = Locator(found, user).encode(HERE)
    assert Locator.decode(text) == Locator(found, user)
    assert text.startswith(HERE)
    assert is_locator(text)


@pytest.mark.parametrize("text", ["", "c=", f"{HERE}", f"{HERE}[", f"{HERE}[7]", f"{HERE}[{{}},", HERE + '[{"a":7}]'])
def test_anything_else_is_no_locator(text: str) -> None:
    with pytest.raises(msgspec.MsgspecError):
        Locator.decode(text)


def test_sources_have_different_prefixes() -> None:
    sources = [("a",), ("b",), ("a", ""), ("a", "b"), ("ab",), ("a,b",), ("a", "b", "")]
    assert len({prefix(*each) for each in sources}) == len(sources)
    assert prefix("a", "b") == prefix("a", "b")


def test_a_broadcast_resumes_only_in_the_source_that_it_began_in() -> None:
    here, there = Locator({}).encode(HERE), Locator({}).encode(prefix("connections"))
    assert can_resume("", HERE)
    assert can_resume("", "")
    assert can_resume(here, HERE)
    assert can_resume("c=", "")
    assert not can_resume(there, HERE)
    assert not can_resume("c=", HERE)
    assert not can_resume(here, "")


@given(st.text(string.ascii_letters + string.digits + "+/=_-", min_size=1, max_size=16))
def test_a_worker_of_an_earlier_version_starts_from_the_beginning(connection_id: str) -> None:
    """It takes the locator for a connection id, and reads on after it."""
    assert Locator({"id": {"S": "c="}}).encode(HERE) < connection_id
    assert not is_locator(connection_id)
