"""What was seen of one question, and how that compares with what Gatecast assumes."""

from enum import Enum
from typing import NamedTuple


class Verdict(Enum):
    """How what was seen compares with what Gatecast assumes. The values appear in the report."""

    FITS = "fits"
    DIFFERS = "**differs**"
    UNCLEAR = "unclear"
    NOT_ASKED = "not asked"
    FAILED = "failed"


class Observation(NamedTuple):
    """`reading` is one sentence: which reading is supported, or why there is none. `seen` are facts of a line each."""

    verdict: Verdict
    reading: str
    seen: tuple[str, ...] = ()


class InvalidProbe(Exception):
    """A probe cannot ask its question: the message says what it needs and what it got instead."""
