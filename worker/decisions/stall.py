"""Connections that return 429: one retry schedule per connection, whichever limit caused it. Pure: time is passed in.

A 429 means either that the account exceeds its rate or that this client's send buffer is full. In both cases the
connection gets one record here, and all deliveries to it, of any broadcast, wait in its line. The first of the line is
the *probe*: it is posted at growing intervals. When it passes, the next ones follow at once, in order: one, then two,
then four, as long as all pass, until the line is empty and the record is dropped. So a client that does not read costs
at most one post per second, and fewer over time, and one that resumes reading catches up however much is published
meanwhile.

A sequential likelihood ratio test decides between the two causes. *References* are the posts to connections without a
record. If the account throttled this connection's posts, it would throttle references alike, so each rejected probe is
compared with the references around it. If a share p of them was rejected, then, because a stalled connection rejects at
least half of its posts, the odds grow by the factor 0.5 / p; a probe that passes halves them. `p` is a conservative
estimate, and above a quarter nothing is concluded. A connection is given up only at odds of 10^12, with 8 rejected
probes in a row over 30 s: whatever share the account throttles, chance reaches these odds less than once in 10^12
connections (Ville's inequality). Without references there is no evidence; if nothing else is sent, the engine posts to
made-up connection ids.

A client that reads, but so slowly that a delivery has waited for two minutes, is given up on the same evidence; its
rejected probes need not be in a row.

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
"""Decimal logarithm of the odds at which a connection is given up."""
_NOTABLE_EVIDENCE: Final = 2.0
"""Decimal logarithm of the odds at which the connection, rather than the account, is the likely cause."""
KEEP_PROBE_SECONDS: Final = 30.0
"""The interval between probes of a connection that was given up and not closed: it may resume reading."""
MAX_IDLE: Final = 10_000
"""Records without a line that are kept; the oldest are dropped first."""
MAX_CLOSING_BURST: Final = 500
CLOSINGS_PER_SECOND: Final = 5.0
_MIN_PROBES_HERE: Final = 2
"""Rejected probes that this worker must have evaluated itself before it hands off waiting deliveries."""
_IDLE_SECONDS: Final = 60.0
_GIVEN_UP_IDLE_SECONDS: Final = 600.0
_MAX_PROBE_SECONDS: Final = 5.0
_MAX_BEHIND_SECONDS: Final = 120.0
"""The time that a delivery may wait for a client that reads, but too slowly."""
_MAX_FAILURES: Final = 3
"""Probes in a row that fail with anything but 429: then the cause is not a full buffer."""
_MAX_FOLLOWERS: Final = 64
_STALLED_SHARE: Final = 0.5
"""The share of its posts that a stalled connection rejects at least."""
_MAX_ACCOUNT_SHARE: Final = 0.25
"""The share of rejected references up to which a rejected probe is evidence about its connection."""
_PSEUDOCOUNT: Final = 3.0
"""Added to the rejected references: with none in n, the share is below 3/n with 95% confidence."""


class PriorRejections(NamedTuple):
    """A connection's rejected probes, since when, and the evidence. A remainder carries these."""

    probes: int
    since: float
    evidence: float


@dataclass(slots=True)
class References:
    """Posts to connections without a record, counted since the start."""

    passed: int = 0
    throttled: int = 0

    def copy(self) -> "References":
        return References(self.passed, self.throttled)

    def share_since(self, before: "References") -> float:
        """A conservative estimate of the share that was throttled since then; 1 if there were none."""
        throttled = self.throttled - before.throttled
        return (throttled + _PSEUDOCOUNT) / (throttled + self.passed - before.passed + _PSEUDOCOUNT)


class CanStall(Protocol):
    """A delivery that can wait in a line. `order` is its broadcast's position among those of its room."""

    stalled: "StalledConnection[Any] | None"

    @property
    def order(self) -> tuple[int, int]: ...


D = TypeVar("D", bound=CanStall)


@dataclass(slots=True, eq=False)
class StalledConnection(Generic[D]):
    """One connection's record. Times are monotonic seconds."""

    connection_id: str
    since: float
    """The time of the first 429."""
    references: References
    """The counts of the whole engine."""
    rejected: int = 1
    """All rejected probes since `since`."""
    given_up: bool = False
    """Whether its client does not read, so that its deliveries are missed."""
    evidence: float = 0.0
    due: float = math.inf
    """When its next probe is due; infinite while nothing waits for it or a probe is in flight."""
    probe_at: float = -math.inf
    """The earliest time of its next probe."""
    probing: D | None = None
    line: dict[D, tuple[int, float]] = field(default_factory=dict)
    """The waiting deliveries in order, each with the probes evaluated when it lined up, and the time of that."""
    _in_a_row: int = 1
    _evidence_pending: bool = True
    _probes_here: int = 0
    _probe_lined_up: tuple[int, float] = field(init=False)
    _read_at: float = field(init=False)
    """When it last accepted a post, or first returned 429."""
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
        """Whether it returned 429 just once: its second post shows whether the account was the cause."""
        return self.rejected == self._in_a_row == 1

    def line_up(self, delivery: D, now: float, *, returning: bool = False) -> None:
        """Insert it into the line, in the order of broadcasts. `returning`: it was in the line before, as the probe."""
        last = next(reversed(self.line), None)
        self.line[delivery] = self._probe_lined_up if returning else (self._probes_here, now)
        delivery.stalled = self
        if last is not None and delivery.order < last.order:
            self.line = dict(sorted(self.line.items(), key=lambda each: each[0].order))

    def remove_from_line(self, delivery: D) -> None:
        """Remove a delivery that no longer waits, for any reason."""
        self.line.pop(delivery, None)
        if self.probing is not delivery:
            delivery.stalled = None

    def first(self) -> D | None:
        return next(iter(self.line), None)

    def post(self, delivery: D) -> None:
        """Record that this delivery of the line is posted now, as a probe."""
        self.probing = delivery
        self._probe_lined_up = self.line.get(delivery, self._probe_lined_up)
        self._posted_before, self._posted = self._posted, self.references.copy()

    def followers(self) -> list[D]:
        """The deliveries of the line that may be posted right after the next probe."""
        behind = min(_MAX_FOLLOWERS, (1 << self._passed_in_a_row >> 1) - 1)
        return list(itertools.islice(self.line, 1, 1 + max(0, behind)))

    def probe_rejected(self) -> None:
        self.probing = None
        self.rejected += 1
        self._in_a_row += 1
        self._evidence_pending = True
        self._failed_in_a_row = self._passed_in_a_row = 0

    def follower_rejected(self) -> None:
        """Its buffer is full for now: post only one probe at a time."""
        self._passed_in_a_row = 0

    def probe_passed(self, now: float) -> None:
        self.probing = None
        self._in_a_row = self._failed_in_a_row = 0
        self._read_at = now
        self._passed_in_a_row = min(self._passed_in_a_row + 1, 16)
        self.evidence = max(0.0, self.evidence - math.log10(1 / _STALLED_SHARE))

    def probe_failed(self) -> bool:
        """Record a failure other than 429. Returns whether they are so many that the cause is not a full buffer."""
        self.probing = None
        self._failed_in_a_row += 1
        return self._failed_in_a_row >= _MAX_FAILURES

    def update_evidence(self) -> None:
        """Weigh the latest rejected probe against the references around it. Call this when the next probe is due."""
        if self._evidence_pending:
            self._evidence_pending = False
            self._probes_here += 1
            share = self.references.share_since(self._posted_before)
            if share <= _MAX_ACCOUNT_SHARE:
                self.evidence += math.log10(_STALLED_SHARE / share)

    def does_not_read(self, now: float) -> bool:
        """Whether chance is ruled out, and its attempts and time are used up. Call this after a probe was rejected."""
        if self.evidence < DECISIVE_EVIDENCE or self.rejected < ATTEMPTS_BEFORE_GIVING_UP:
            return False
        if self._in_a_row >= ATTEMPTS_BEFORE_GIVING_UP and now - self._read_at >= SECONDS_BEFORE_GIVING_UP:
            return True
        return now - self._probe_lined_up[1] >= _MAX_BEHIND_SECONDS

    def may_hand_off(self, delivery: D) -> bool:
        """Whether a remainder may take it: probes were rejected since it lined up, hardly because of the account."""
        probes_since = self._probes_here - self.line.get(delivery, (self._probes_here, 0.0))[0]
        return self._probes_here >= _MIN_PROBES_HERE and probes_since > 0 and self.evidence >= _NOTABLE_EVIDENCE

    def retry_seconds(self, jitter: float, *, account_throttles: bool) -> float:
        """The delay from a rejected probe to the next one. `jitter` is uniform in [0, 1)."""
        if self.given_up:
            return KEEP_PROBE_SECONDS * (0.75 + jitter / 2)
        if account_throttles or self._in_a_row <= 1:
            return backoff_seconds(self._in_a_row, jitter)
        return min(_MAX_PROBE_SECONDS, self._in_a_row - 1) * (1 + jitter / 4)

    def resume(self, prior_rejections: PriorRejections) -> None:
        """Continue from what another worker recorded, but leave the last probes to this worker."""
        self.rejected = self._in_a_row = min(prior_rejections.probes, ATTEMPTS_BEFORE_GIVING_UP - 2)
        self.since = self._read_at = min(self.since, prior_rejections.since)
        self.evidence = min(prior_rejections.evidence, DECISIVE_EVIDENCE - 1)
        self._evidence_pending = False


class StalledConnections(Generic[D]):
    """The records of one engine, and when their probes are due. The engine counts the `references`."""

    def __init__(self, references: References) -> None:
        self._references = references
        self.by_id: dict[str, StalledConnection[D]] = {}
        self._idle: OrderedDict[StalledConnection[D], float] = OrderedDict()
        """Records without a line, and the time until which each is kept."""
        self._heap: list[tuple[float, int, StalledConnection[D]]] = []
        self._sequence = itertools.count()

    def __len__(self) -> int:
        return len(self.by_id)

    @property
    def undecided(self) -> bool:
        """Whether a record has a line, so that references are needed to find the cause of its 429s."""
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
        """Probe it at `due`, if its line is not empty by then."""
        record.due = record.probe_at = due
        self._idle.pop(record, None)
        heapq.heappush(self._heap, (due, next(self._sequence), record))

    def drop_idle(self, now: float) -> None:
        """Drop records whose line has been empty for some time, and the oldest if there are too many."""
        while self._idle:
            oldest, until = next(iter(self._idle.items()))
            if until > now and len(self._idle) <= MAX_IDLE:
                break
            self.remove(oldest)

    def next_due(self, now: float) -> StalledConnection[D] | None:
        """Take the next record whose probe is due off the schedule, and return it; None if there is none."""
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
        """Keep a record with an empty line for some time, for later deliveries."""
        record.due = math.inf
        self._idle[record] = now + (_GIVEN_UP_IDLE_SECONDS if record.given_up else _IDLE_SECONDS)
        self._idle.move_to_end(record)
        self.drop_idle(now)


@dataclass(slots=True)
class ClosingBudget:
    """Limits how many connections are closed: a burst, then a rate per second.

    A higher number is more likely a mistake than that many clients that do not read.
    """

    _left: float = MAX_CLOSING_BURST
    _filled_at: float = -math.inf

    def spend(self, now: float) -> bool:
        """Whether another may be closed now; if so, it is counted."""
        self._left = min(MAX_CLOSING_BURST, self._left + CLOSINGS_PER_SECOND * (now - self._filled_at))
        self._filled_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
