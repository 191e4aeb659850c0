"""Faults on purpose, repeatable: which `@connections` calls go wrong, and how.

A `Rule` says what happens (the fault), to which connections, and to what share. Shares are decided by a hash of the
seed, the rule, the connection id and, where calls are chosen, how many calls the connection has had under that rule:
never by the time or by the order of different connections. So two runs with the same ids suffer alike.
Pure; `Faults` keeps those counts and nothing else.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Literal

import msgspec

_HASH_RANGE: Final = 2**64


class Delay(msgspec.Struct, frozen=True, tag=True, tag_field="kind"):
    """The usual answer, later."""

    seconds: float


class Answer(msgspec.Struct, frozen=True, kw_only=True, tag=True, tag_field="kind"):
    """Another answer than the usual one, documented or not. With `delivers` the call has its effect nevertheless.

    An empty `error_type` leaves `x-amzn-ErrorType` out; the body is sent as it is and may be empty or no JSON.
    """

    status: int
    error_type: str = ""
    body: str = ""
    content_type: str = "application/json"
    delivers: bool = False


class Reset(msgspec.Struct, frozen=True, kw_only=True, tag=True, tag_field="kind"):
    """The TCP connection is reset instead of an answer, or closed within its headers or its body (`cut`)."""

    delivers: bool = False
    cut: Literal["before", "headers", "body"] = "before"


class Stall(msgspec.Struct, frozen=True, kw_only=True, tag=True, tag_field="kind"):
    """No answer at all for so long; then the TCP connection is reset."""

    seconds: float
    delivers: bool = False


class LostDisconnect(msgspec.Struct, frozen=True, tag=True, tag_field="kind"):
    """The connection's `$disconnect` never reaches its route, however it ends."""


Fault = Delay | Answer | Reset | Stall | LostDisconnect

THROTTLED: Final = Answer(status=429, error_type="LimitExceededException", body='{"message": "Limit exceeded"}')
"""Over a share of calls it is the account's throttle; over a share of connections, clients whose buffers are full."""
UNAVAILABLE: Final = Answer(status=503, error_type="ServiceUnavailableException", body='{"message": null}')
INTERNAL_ERROR: Final = Answer(
    status=500, error_type="InternalServerErrorException", body='{"message": "Internal server error"}'
)
NOT_JSON: Final = Answer(status=502, body="<html><body>Bad Gateway</body></html>", content_type="text/html")
HALF_AN_ANSWER: Final = Reset(delivers=True, cut="body")


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One fault and whom it strikes: the `share` of `calls`, or of `connections` (then each always or never).

    `only` restricts it to these connections, `methods` to these calls; `at_most` ends it after so many strikes.
    """

    fault: Fault
    share: float = 1.0
    of: Literal["calls", "connections"] = "calls"
    only: frozenset[str] | None = None
    methods: frozenset[str] = frozenset({"POST"})
    at_most: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise ValueError("share must be between 0 and 1")
        if isinstance(self.fault, Answer):
            HTTPStatus(self.fault.status)


@dataclass(slots=True)
class _Record:
    """What has happened under one rule."""

    calls: Counter[str] = field(default_factory=Counter)
    strikes: int = 0


class Faults:
    """The rules in force. The first one that strikes decides."""

    def __init__(self, rules: Iterable[Rule] = (), *, seed: int = 0) -> None:
        self._seed = seed
        self._rules: tuple[tuple[Rule, _Record], ...] = ()
        self.replace(rules)

    def replace(self, rules: Iterable[Rule]) -> None:
        """Puts other rules in force, at once. No rules: no faults. Counts start again."""
        self._rules = tuple((rule, _Record()) for rule in rules)

    def strike(self, method: str, connection_id: str) -> Fault | None:
        """What this call suffers. Each call must be asked for once, as it is counted."""
        for index, (rule, record) in enumerate(self._rules):
            if method not in rule.methods or isinstance(rule.fault, LostDisconnect):
                continue
            if self._strikes(index, rule, record, connection_id):
                return rule.fault
        return None

    def loses_disconnect(self, connection_id: str) -> bool:
        return any(
            isinstance(rule.fault, LostDisconnect) and self._strikes(index, rule, record, connection_id)
            for index, (rule, record) in enumerate(self._rules)
        )

    def _strikes(self, index: int, rule: Rule, record: _Record, connection_id: str) -> bool:
        if rule.only is not None and connection_id not in rule.only:
            return False
        if rule.at_most is not None and record.strikes >= rule.at_most:
            return False
        call = ""
        if rule.of == "calls":
            call = str(record.calls[connection_id])
            record.calls[connection_id] += 1
        key = f"{self._seed}/{index}/{connection_id}/{call}".encode()
        drawn = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) / _HASH_RANGE
        chosen = drawn < rule.share
        record.strikes += chosen
        return chosen
