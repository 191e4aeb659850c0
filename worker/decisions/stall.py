"""Connections that return 429: one retry schedule per connection, whatever it is that refuses. Pure: time is passed in.

A 429 says either that the account's rate is exceeded or that this client's send buffer is full. Either way the
connection gets one record here, and all deliveries to it, of whatever broadcast, wait in its line. The first of the
line *probes*: it is posted at growing intervals. When it passes, the next ones follow at once, in order: one, then two,
then four, as long as all pass, until the line is empty and the record is dropped. So a client that does not read costs
at most one post per second, and falling, and one that reads again catches up however much is published meanwhile.

Which of the two it is, is decided by a sequential likelihood ratio test. *References* are the posts to connections
without a record. If the account rejected this connection's posts, it would reject references alike, so each rejected
probe is compared with the references around it: where a share p of them was rejected, and a stalled connection rejects
at least half of its posts, the odds grow by the factor 0.5 / p, and a probe that passes halves them. `p` is taken on
the safe side, and where it is above a quarter nothing is concluded. Odds of 10^12 are needed, with 8 rejected probes
in a row over 30 s, before a connection is given up: however much the account rejects, chance reaches them less than
once in 10^12 connections (Ville's inequality). Without references nothing counts; where nothing else is sent, the
engine posts to made-up connection ids.

A client that does read, but so slowly that what waits for it has waited for two minutes, is given up on the same
evidence, without the probes having to be in a row.

Always: a delivery is in at most one line, and is in it exactly while it waits and its broadcast has not stopped.
"""

import heapq
import itertools
import math
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from worker.decisions.backoff import ATTEMPTS_BEFORE_GIVING_UP, SECONDS_BEFORE_GIVING_UP, backoff_seconds

DECISIVE_EVIDENCE: Final = 12.0
"""Decimal logarithm of the odds from which on a connection is given up."""
_NOTABLE_EVIDENCE: Final = 2.0
"""From here on a connection rather than the account is the reason, though not for certain."""
KEEP_PROBE_SECONDS: Final = 30.0
"""A connection that was given up and not closed is probed this often: it may read again."""
MAX_IDLE: Final = 10_000
"""Records without a line that are remembered; the oldest go first."""
CLOSINGS_AT_ONCE: Final = 500
CLOSINGS_PER_SECOND: Final = 5.0
_MIN_JUDGED: Final = 2
"""Probes that a worker has judged itself before it lets what waits go on elsewhere."""
_IDLE_SECONDS: Final = 60.0
_GIVEN_UP_IDLE_SECONDS: Final = 600.0
_SLOWEST_PROBE_SECONDS: Final = 5.0
_MAX_BEHIND_SECONDS: Final = 120.0
"""How long a delivery may wait for a client that reads, but too slowly."""
_MAX_FAILURES: Final = 3
"""Probes in a row that fail otherwise than by 429: then it is no matter of a full buffer."""
_MAX_FOLLOWERS: Final = 64
_STALLED_SHARE: Final = 0.5
"""Of its posts, which a stalled connection rejects at least."""
_MAX_ACCOUNT_SHARE: Final = 0.25
"""Of the references, up to which a rejected probe says anything about its connection."""
_CAUTION: Final = 3.0
"""Rejected references that are added to those seen: with none in n, the share is below 3/n with 95% confidence."""


class Refused(NamedTuple):
    """How often a connection has refused, for how long, and how sure it is. What a remainder carries."""

    probes: int
    since: float
    evidence: float


@dataclass(slots=True)
class References:
    """Posts to connections without a record, since the start: how many passed, and how many were throttled."""

    passed: int = 0
    throttled: int = 0

    def copy(self) -> "References":
        return References(self.passed, self.throttled)

    def share_since(self, before: "References") -> float:
        """The share that was throttled since then, on the safe side; 1 where there were none."""
        throttled = self.throttled - before.throttled
        return (throttled + _CAUTION) / (throttled + self.passed - before.passed + _CAUTION)


class CanStall(Protocol):
    """What can wait in a line: a delivery. `order` is its broadcast's place among those of its room."""

    stalled: "StalledConnection[Any] | None"

    @property
    def order(self) -> tuple[int, int]: ...


D = TypeVar("D", bound=CanStall)


@dataclass(slots=True, eq=False)
class StalledConnection(Generic[D]):
    """One connection's record. Times are monotonic seconds."""

    connection_id: str
    since: float
    """When it was first refused."""
    references: References
    """Of the whole engine."""
    refused: int = 1
    """Rejected probes in all, since `since`."""
    given_up: bool = False
    """It does not read: what is for it is missed."""
    evidence: float = 0.0
    due: float = math.inf
    """When the registry wakes it; never, while nothing waits for it or a probe is in flight."""
    probe_at: float = -math.inf
    """The earliest time of its next probe."""
    probing: D | None = None
    line: dict[D, tuple[int, float]] = field(default_factory=dict)
    """What waits, in order; how many probes had been judged when it lined up, and when that was."""
    _in_a_row: int = 1
    _unjudged: bool = True
    _judged_here: int = 0
    _probe_lined_up: tuple[int, float] = field(init=False)
    _read_at: float = field(init=False)
    """When it last took something, or was first refused."""
    _passed_in_a_row: int = 0
    _failed_in_a_row: int = 0
    _posted: References = field(init=False)
    _posted_before: References = field(init=False)

    def __post_init__(self) -> None:
        self._read_at = self.since
        self._probe_lined_up = (0, self.since)
        self._posted = self._posted_before = self.references.copy()

    @property
    def is_new(self) -> bool:
        """Whether it was refused just once: its second post tells whether the account was the reason."""
        return self.refused == self._in_a_row == 1

    def line_up(self, delivery: D, now: float, *, again: bool = False) -> None:
        """Let it wait, in the order of broadcasts. `again`: it was the probe, and has been in line before."""
        last = next(reversed(self.line), None)
        self.line[delivery] = self._probe_lined_up if again else (self._judged_here, now)
        delivery.stalled = self
        if last is not None and delivery.order < last.order:
            self.line = dict(sorted(self.line.items(), key=lambda each: each[0].order))

    def leave(self, delivery: D) -> None:
        """It waits no longer, for whatever reason."""
        self.line.pop(delivery, None)
        if self.probing is not delivery:
            delivery.stalled = None

    def first(self) -> D | None:
        return next(iter(self.line), None)

    def post(self, delivery: D) -> None:
        """This one of the line is posted now, as a probe."""
        self.probing = delivery
        self._probe_lined_up = self.line.get(delivery, self._probe_lined_up)
        self._posted_before, self._posted = self._posted, self.references.copy()

    def followers(self) -> list[D]:
        """Those of the line that may be posted right behind the next probe."""
        behind = min(_MAX_FOLLOWERS, (1 << self._passed_in_a_row >> 1) - 1)
        return list(itertools.islice(self.line, 1, 1 + max(0, behind)))

    def probe_refused(self) -> None:
        self.probing = None
        self.refused += 1
        self._in_a_row += 1
        self._unjudged = True
        self._failed_in_a_row = self._passed_in_a_row = 0

    def follower_refused(self) -> None:
        """It has enough for now: no more than a probe at a time."""
        self._passed_in_a_row = 0

    def probe_passed(self, now: float) -> None:
        self.probing = None
        self._in_a_row = self._failed_in_a_row = 0
        self._read_at = now
        self._passed_in_a_row = min(self._passed_in_a_row + 1, 16)
        self.evidence = max(0.0, self.evidence - math.log10(1 / _STALLED_SHARE))

    def probe_failed(self) -> bool:
        """In another way. Whether it has failed so often that this is no matter of a full buffer."""
        self.probing = None
        self._failed_in_a_row += 1
        return self._failed_in_a_row >= _MAX_FAILURES

    def judge(self) -> None:
        """Weigh the latest rejected probe by the references around it. Call it when the next probe is due."""
        if self._unjudged:
            self._unjudged = False
            self._judged_here += 1
            share = self.references.share_since(self._posted_before)
            if share <= _MAX_ACCOUNT_SHARE:
                self.evidence += math.log10(_STALLED_SHARE / share)

    def does_not_read(self, now: float) -> bool:
        """Whether chance is ruled out, and it had its attempts and its time. Ask after a probe was rejected."""
        if self.evidence < DECISIVE_EVIDENCE or self.refused < ATTEMPTS_BEFORE_GIVING_UP:
            return False
        if self._in_a_row >= ATTEMPTS_BEFORE_GIVING_UP and now - self._read_at >= SECONDS_BEFORE_GIVING_UP:
            return True
        return now - self._probe_lined_up[1] >= _MAX_BEHIND_SECONDS

    def lets_leave(self, delivery: D) -> bool:
        """Whether this one may go on elsewhere: probes since it lined up were in vain, and hardly for the account."""
        judged_since = self._judged_here - self.line.get(delivery, (self._judged_here, 0.0))[0]
        return self._judged_here >= _MIN_JUDGED and judged_since > 0 and self.evidence >= _NOTABLE_EVIDENCE

    def retry_seconds(self, jitter: float, *, account_throttles: bool) -> float:
        """From a rejected probe to the next. `jitter` is uniform in [0, 1)."""
        if self.given_up:
            return KEEP_PROBE_SECONDS * (0.75 + jitter / 2)
        if account_throttles or self._in_a_row <= 1:
            return backoff_seconds(self._in_a_row, jitter)
        return min(_SLOWEST_PROBE_SECONDS, self._in_a_row - 1) * (1 + jitter / 4)

    def resume(self, carried: Refused) -> None:
        """Go on from what another worker has seen, but let this worker see the last of it for itself."""
        self.refused = self._in_a_row = min(carried.probes, ATTEMPTS_BEFORE_GIVING_UP - 2)
        self.since = self._read_at = min(self.since, carried.since)
        self.evidence = min(carried.evidence, DECISIVE_EVIDENCE - 1)
        self._unjudged = False


class StalledConnections(Generic[D]):
    """The records of one engine, and when their probes are due. `references` are counted by the engine."""

    def __init__(self, references: References) -> None:
        self._references = references
        self.by_id: dict[str, StalledConnection[D]] = {}
        self._idle: OrderedDict[StalledConnection[D], float] = OrderedDict()
        """Records without a line, and until when each is remembered."""
        self._heap: list[tuple[float, int, StalledConnection[D]]] = []
        self._sequence = itertools.count()

    def __len__(self) -> int:
        return len(self.by_id)

    @property
    def undecided(self) -> bool:
        """Whether there is a connection that was refused again and again, and references are needed to judge it."""
        return len(self._idle) < len(self.by_id)

    def get(self, connection_id: str) -> StalledConnection[D] | None:
        return self.by_id.get(connection_id)

    def add(self, connection_id: str, now: float) -> StalledConnection[D]:
        record = StalledConnection[D](connection_id, now, self._references)
        self.by_id[connection_id] = record
        return record

    def remove(self, record: StalledConnection[D]) -> None:
        record.due = math.inf
        self._idle.pop(record, None)
        self.by_id.pop(record.connection_id, None)

    def schedule(self, record: StalledConnection[D], due: float) -> None:
        """Probe it then, if something waits in its line by that time."""
        record.due = record.probe_at = due
        self._idle.pop(record, None)
        heapq.heappush(self._heap, (due, next(self._sequence), record))

    def forget_idle(self, now: float) -> None:
        """Forget records that nothing has waited for in a while, and the oldest where there are too many."""
        while self._idle:
            oldest, until = next(iter(self._idle.items()))
            if until > now and len(self._idle) <= MAX_IDLE:
                break
            self.remove(oldest)

    def next_due(self, now: float) -> StalledConnection[D] | None:
        """The next record whose probe is due, if there is one; it is not scheduled any more."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            due, _, record = heapq.heappop(heap)
            if due == record.due:
                record.due = math.inf
                return record
        return None

    def due_at(self) -> float:
        return self._heap[0][0] if self._heap else math.inf

    def rest(self, record: StalledConnection[D], now: float) -> None:
        """Nothing waits for it: remember it for a while, for what may come."""
        record.due = math.inf
        self._idle[record] = now + (_GIVEN_UP_IDLE_SECONDS if record.given_up else _IDLE_SECONDS)
        self._idle.move_to_end(record)
        self.forget_idle(now)


@dataclass(slots=True)
class ClosingBudget:
    """How many connections may be closed: so many at once, and so many per second after that.

    Many more would rather be a mistake than so many clients that do not read.
    """

    _left: float = CLOSINGS_AT_ONCE
    _filled_at: float = -math.inf

    def spend(self, now: float) -> bool:
        """Whether one more may be closed now."""
        self._left = min(CLOSINGS_AT_ONCE, self._left + CLOSINGS_PER_SECOND * (now - self._filled_at))
        self._filled_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
