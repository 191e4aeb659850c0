"""Removes ids and secrets from the report: those that are known, and everything that looks like one.

The report is meant to be published. A text that is masked without need costs little, so the patterns are broad.
"""

import re
from collections.abc import Iterable
from typing import Final

MASK: Final = "…"
MIN_SECRET_CHARACTERS: Final = 4
"""Shorter texts are not masked as known secrets: they would be found inside of words."""

_PATTERNS: Final = tuple(
    re.compile(pattern)
    for pattern in (
        r"\barn:aws[\w-]*:(?:iam|sts)::[^\s,;'\"]+",  # principals, with their names
        r"\beyJ[\w-]+\.[\w-]+(?:\.[\w-]*)?",  # a JWT
        r"\bA(?:KIA|SIA|IDA|ROA|BIA|CCA|3T)[A-Z0-9]{12,}",  # ids of access keys and principals
        r"(?<!\d)\d{12}(?!\d)",  # account ids
        r"\b[a-z0-9]{10}(?=\.execute-api\b)",
        r"(?<=:)[a-z0-9]{10}(?=/)",  # an API id in an ARN
        r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b",  # request ids
        r"[\w+/-]{8,}(?:=|%3D|%253D){1,2}(?=[^\w]|$)",  # connection ids, Base64
        r"\b[0-9a-fA-F]{32,}\b",  # signatures and digests
        r"(?=[\w/+=-]*\d)(?=[\w/+=-]*[A-Z])[\w/+=-]{40,}",  # secret access keys
        r"[\w/+=-]{64,}",  # session tokens
        r"\b\d{1,3}(?:\.\d{1,3}){3}\b",  # addresses
    )
)


class Masker:
    """Masks the texts that are added to it, in any encoding for URLs, and the patterns above."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets = {secret for secret in secrets if len(secret) >= MIN_SECRET_CHARACTERS}

    def add(self, *secrets: str) -> None:
        self._secrets.update(secret for secret in secrets if len(secret) >= MIN_SECRET_CHARACTERS)

    def mask(self, text: str) -> str:
        for secret in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(secret, MASK)
        for pattern in _PATTERNS:
            text = pattern.sub(MASK, text)
        return text
