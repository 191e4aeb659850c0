"""What a response says about why it failed, for operators: its status, its error type and its first sentence. Pure.

A 403 for all posts has many causes: a wrong Region, a wrong clock, revoked credentials, a missing permission, another
endpoint. Only the text distinguishes them. But a text may repeat the request: API Gateway's message about a wrong
signature contains the canonical request, and so the session token. Therefore nothing after the first sentence, and
nothing of a repeated request, ever gets out of here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gatecast.printable import printable

_MAX_CHARACTERS: Final = 200
_MAX_WORD: Final = 170
"""A longer word is no part of a sentence: session tokens have some hundred characters, ARNs of roles up to 165."""
# Up to the first escape sequence, which begins the canonical request. So a body that was cut off can be read, too.
_MESSAGE: Final = re.compile(rb'"[Mm]essage"\s*:\s*"((?:[^"\\]|\\["/])*)')
_TYPE_IN_BODY: Final = re.compile(rb'"__type"\s*:\s*"([^"\\]*)"')
_TYPE: Final = re.compile(r"[A-Za-z0-9_]{1,64}")
_REPEATED_REQUEST: Final = re.compile(
    rf"[\r\n]|canonical|string-to-sign|x-amz-|authorization[:=]|credential=|signature=|\S{{{_MAX_WORD + 1}}}",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class FailedResponse:
    """A response that is not a success. Its text is made only when it is reported, because most are only counted."""

    status: int
    headers: Mapping[bytes, bytes]
    """Names in lower case."""
    body: bytes

    def __str__(self) -> str:
        error_type, sentence = _error_type(self.headers, self.body), first_sentence(self.body)
        return f"status {self.status}" + (f" ({error_type})" if error_type else "") + (sentence and f": {sentence}")


def _error_type(headers: Mapping[bytes, bytes], body: bytes) -> str:
    """For example `ForbiddenException`; empty if there is none."""
    found = _TYPE_IN_BODY.search(body)
    name = headers.get(b"x-amzn-errortype") or (found[1] if found else b"")
    text = name.decode("ascii", "replace").partition(":")[0].rpartition("#")[2]  # coral's namespaces
    return text if _TYPE.fullmatch(text) else ""


def first_sentence(body: bytes) -> str:
    """The first sentence of the body's message, at most 200 characters, all of them printable."""
    found = _MESSAGE.search(body)
    if found is None:
        return ""
    text = re.sub(r'\\(["/])', r"\1", found[1].decode("utf-8", "replace"))
    if repeated := _REPEATED_REQUEST.search(text):
        text = text[: repeated.start()]
    sentence = re.split(r"(?<=\.)\s", text.strip(), maxsplit=1)[0]
    shown = printable(sentence)
    return shown if len(shown) <= _MAX_CHARACTERS else f"{shown[: _MAX_CHARACTERS - 1]}…"
