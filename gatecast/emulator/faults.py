"""Reproducible fault injection: which `@connections` calls fail, and how.

A `Rule` defines a fault, the connections it affects, and the affected share. A hash of the seed, the rule, the
connection id and, for shares of calls, the connection's number of calls under that rule selects what is affected; time
and the order of different connections have no influence. Two runs with the same ids see the same faults.
Pure; the only state of `Faults` is these counts.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Literal

import msgspec

_HASH_RANGE: Final = 2**64


class Delay(msgspec.Struct, frozen=True, tag=True, tag_field="kind"):
    """The normal response, delayed."""

    seconds: float


class CannedResponse(msgspec.Struct, frozen=True, kw_only=True, tag=True, tag_field="kind"):
    """Replaces the normal response, with a documented one or any other. With `delivers` the call still takes effect.

    An empty `error_type` omits `x-amzn-ErrorType`; the body is sent unchanged and may be empty or not JSON.
    """

    status: int
    error_type: str = ""
    body: str = ""
    content_type: str = "application/json"
    delivers: bool = False


class Reset(msgspec.Struct, frozen=True, kw_only=True, tag=True, tag_field="kind"):
    """The TCP connection is reset before the response, or closed within the response's headers or body (`cut`)."""

    delivers: bool = False
    cut: Literal["before", "headers", "body"] = "before"


class Stall(msgspec.Struct, frozen=True, kw_only=True, tag=True, tag_field="kind"):
    """No response for `seconds`; then the TCP connection is reset."""

    seconds: float
    delivers: bool = False


class LostDisconnect(msgspec.Struct, frozen=True, tag=True, tag_field="kind"):
    """The connection's `$disconnect` never reaches its route, however the connection ends."""


Fault = Delay | CannedResponse | Reset | Stall | LostDisconnect

THROTTLED: Final = CannedResponse(status=429, error_type="LimitExceededException", body='{"message": "Limit exceeded"}')
"""For a share of calls it simulates the account's throttle; for a share of connections, clients with full buffers."""
UNAVAILABLE: Final = CannedResponse(status=503, error_type="ServiceUnavailableException", body='{"message": null}')
INTERNAL_ERROR: Final = CannedResponse(
    status=500, error_type="InternalServerErrorException", body='{"message": "Internal server error"}'
)
NOT_JSON: Final = CannedResponse(status=502, body="<html><body>Bad Gateway</body></html>", content_type="text/html")
TRUNCATED_RESPONSE: Final = Reset(delivers=True, cut="body")
GONE: Final = CannedResponse(status=410, error_type="GoneException")
"""For a connection that is open all the same."""
NAMED: Final[Mapping[str, Fault]] = {
    "throttled": THROTTLED,
    "unavailable": UNAVAILABLE,
    "internal_error": INTERNAL_ERROR,
    "not_json": NOT_JSON,
    "truncated": TRUNCATED_RESPONSE,
    "gone": GONE,
    "lost_disconnect": LostDisconnect(),
}
"""The faults that a configuration file calls by name."""


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One fault and what it affects: a `share` of calls, or of connections (each of them always or never).

    `only` restricts it to these connections, `methods` to these calls. It ends once it has been applied `max_count`
    times.
    """

    fault: Fault
    share: float = 1.0
    of: Literal["calls", "connections"] = "calls"
    only: frozenset[str] | None = None
    methods: frozenset[str] = frozenset({"POST"})
    max_count: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise ValueError("share must be between 0 and 1")
        if isinstance(self.fault, CannedResponse):
            HTTPStatus(self.fault.status)


@dataclass(slots=True)
class _Record:
    """The counts of one rule."""

    calls: Counter[str] = field(default_factory=Counter)
    applied: int = 0


class Faults:
    """The active rules. The first one that applies decides."""

    def __init__(self, rules: Iterable[Rule] = (), *, seed: int = 0) -> None:
        self._seed = seed
        self._rules: tuple[tuple[Rule, _Record], ...] = ()
        self.replace(rules)

    def replace(self, rules: Iterable[Rule]) -> None:
        """Replaces the rules immediately and resets all counts. Without rules there are no faults."""
        self._rules = tuple((rule, _Record()) for rule in rules)

    def add(self, rule: Rule) -> None:
        """Adds a rule after the others, whose counts stay."""
        self._rules = (*self._rules, (rule, _Record()))

    def next_fault(self, method: str, connection_id: str) -> Fault | None:
        """The fault of the next call, or None. It counts the call, so it must be called exactly once per call."""
        for index, (rule, record) in enumerate(self._rules):
            if method not in rule.methods or isinstance(rule.fault, LostDisconnect):
                continue
            if self._applies(index, rule, record, connection_id):
                return rule.fault
        return None

    def loses_disconnect(self, connection_id: str) -> bool:
        return any(
            isinstance(rule.fault, LostDisconnect) and self._applies(index, rule, record, connection_id)
            for index, (rule, record) in enumerate(self._rules)
        )

    def _applies(self, index: int, rule: Rule, record: _Record, connection_id: str) -> bool:
        if rule.only is not None and connection_id not in rule.only:
            return False
        if rule.max_count is not None and record.applied >= rule.max_count:
            return False
        call = ""
        if rule.of == "calls":
            call = str(record.calls[connection_id])
            record.calls[connection_id] += 1
        key = f"{self._seed}/{index}/{connection_id}/{call}".encode()
        drawn = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) / _HASH_RANGE
        chosen = drawn < rule.share
        record.applied += chosen
        return chosen
