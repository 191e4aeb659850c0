"""A model of workers that append to one room's history while a client joins, explored exhaustively.

Each worker has receives of some messages. It reads the head, claims each message by the real rule
(`worker.decisions.claims.decide`), appends those that it has claimed in one transaction or in several, reads the
members, posts and records the completion; each of these is a separate step. The numbers and the meaning of a cancelled
transaction come from `worker.decisions.history`. The first worker is a zombie as soon as the second one has claimed its
message. Workers may crash at any step, and their messages are received again; responses to transactions may be lost.
The workers' clocks differ. A client writes its membership, makes sure that there is a head, and then queries the
stream, which is no snapshot: it reads one offset per step.

`explore` walks through all schedules. It returns which guarantees were violated.
"""

from collections import Counter
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from worker.decisions.claims import DUPLICATE_SECONDS, Claimant, NotClaimed, Standing, decide
from worker.decisions.history import Conflict, Known, NotAppended, SeenHead, outcome

NOW = float(DUPLICATE_SECONDS)
JOINER_CLOCK_MS = 101


class At(IntEnum):
    """The next step for a message on a worker."""

    PAGE_EARLY = -1
    CLAIM = 0
    APPEND = 1
    PAGE = 2
    POST = 3
    COMPLETE = 4
    GONE = 5


class Job(NamedTuple):
    """A receive of a message on a worker."""

    message: str
    receive_count: int
    at: At = At.CLAIM
    offset: int = 0
    saw_member: bool = False

    @property
    def claim_id(self) -> str:
        return f"{self.message}/{self.receive_count}"


class Work(NamedTuple):
    """A worker. `head` is the offset that it has seen: None if there is none; `unread` if it has to be read."""

    jobs: tuple[Job, ...]
    clock_ms: int
    crashes: int = 0
    losses: int = 0
    """How many responses to its transactions may be lost."""
    unread: bool = True
    head: int | None = None
    used: int = 0

    @property
    def known(self) -> Known:
        head = None if self.unread else SeenHead(None) if self.head is None else SeenHead.at(self.head)
        return Known(head, self.used)

    def seeing(self, known: Known) -> "Work":
        head = known.head.offset if known.head is not None else None
        return self._replace(unread=known.head is None, head=head, used=known.used)

    def replace(self, number: int, job: Job) -> "Work":
        return self._replace(jobs=(*self.jobs[:number], job, *self.jobs[number + 1 :]))


class Item(NamedTuple):
    """A progress item."""

    receive_count: int
    offset: int | None = None
    completed: bool = False


class Client(NamedTuple):
    """The client that joins. `step` counts its steps, `reply` has the offsets and messages that its query found."""

    step: int = 0
    is_member: bool = False
    reply: frozenset[tuple[int, str]] = frozenset()
    live: frozenset[tuple[int, str]] = frozenset()


class State(NamedTuple):
    works: tuple[Work, ...]
    client: Client = Client()
    items: tuple[tuple[str, Item], ...] = ()
    head: int | None = None
    entries: tuple[tuple[int, str], ...] = ()

    def item(self, message: str) -> Item | None:
        return dict(self.items).get(message)

    def with_items(self, **changed: Item) -> "State":
        return self._replace(items=tuple(sorted({**dict(self.items), **changed}.items())))

    def with_work(self, number: int, work: Work) -> "State":
        return self._replace(works=(*self.works[:number], work, *self.works[number + 1 :]))


class Variant(NamedTuple):
    """The behaviour of workers; the defaults match the real one."""

    appends_before_paging: bool = True
    is_transaction: bool = True
    """If not, the head is counted up first; then the entry is put, with the number that was counted."""
    checks_claim: bool = True
    checks_head: bool = True
    keeps_offset: bool = True
    """Whether the worker that takes a broadcast over reads its offset back."""
    joins_first: bool = True
    """Whether the client writes its membership before its query."""


def explore(works: tuple[Work, ...], variant: Variant | None = None) -> Counter[str]:
    """Counts the visited and the final states, and the final states that violate a guarantee, by guarantee."""
    model = _Model(variant or Variant(), works)
    counts: Counter[str] = Counter()
    seen = {State(works)}
    stack = [State(works)]
    while stack:
        state = stack.pop()
        following = list(model.following(state))
        if not following:
            counts.update(("ended", *_violations(state, model.messages)))
        for each in following:
            if each not in seen:
                seen.add(each)
                stack.append(each)
    counts["visited"] = len(seen)
    return +counts


def _violations(state: State, messages: set[str]) -> Iterator[str]:
    offsets = sorted(offset for offset, _ in state.entries)
    if any(each not in state.client.reply | state.client.live for each in state.entries):
        yield "missing at the client"
    if offsets and (offsets != list(range(offsets[0], offsets[-1] + 1)) or state.head != offsets[-1]):
        yield "gap"
    if len({message for _, message in state.entries}) < len(state.entries):
        yield "two offsets"
    if len({offset for offset, _ in state.client.live | set(state.entries)}) < len(
        state.client.live | set(state.entries)
    ):
        yield "offset used twice"
    if {message for _, message in state.entries} != messages:
        yield "lost"


class _Model:
    def __init__(self, variant: Variant, works: tuple[Work, ...]) -> None:
        self.variant = variant
        self.messages = {job.message for work in works for job in work.jobs}
        starts = {work.clock_ms for work in works} | {JOINER_CLOCK_MS + 1}
        self.possible = sorted({start + more for start in starts for more in range(len(self.messages))})

    def following(self, state: State) -> Iterator[State]:
        for number, work in enumerate(state.works):
            if all(job.at is At.GONE for job in work.jobs):
                continue
            yield from (_settled(each, number) for each in self._steps(state, number, work))
            if work.crashes and any(job.at is not At.CLAIM for job in work.jobs):
                again = (job if job.at is At.GONE else Job(job.message, job.receive_count + 1) for job in work.jobs)
                yield state.with_work(number, Work(tuple(again), work.clock_ms, work.crashes - 1, work.losses))
        yield from self._client(state)

    def _client(self, state: State) -> Iterator[State]:
        client = state.client
        step = client.step if self.variant.joins_first else (client.step + 2) % (len(self.possible) + 2)
        after = client._replace(step=client.step + 1)
        if client.step == len(self.possible) + 2:
            return
        if step == 0:
            yield state._replace(client=after._replace(is_member=True))
        elif step == 1:
            yield state._replace(client=after, head=JOINER_CLOCK_MS if state.head is None else state.head)
        else:
            found = {each for each in state.entries if each[0] == self.possible[step - 2]}
            yield state._replace(client=after._replace(reply=client.reply | found))

    def _steps(self, state: State, number: int, work: Work) -> Iterator[State]:
        """The next steps of a worker, for the messages that are behind the others."""
        if work.unread:
            seen = SeenHead(None) if state.head is None else SeenHead.at(state.head)
            yield state.with_work(number, work.seeing(work.known.after(seen)))
        waiting = [index for index, job in enumerate(work.jobs) if job.at is At.APPEND]
        if waiting and not work.unread:
            yield from self._append(state, number, work, waiting)
        for index, job in enumerate(work.jobs):
            if job.at is At.CLAIM:
                yield self._claim(state, number, work, index)
                return
        for index, job in enumerate(work.jobs):
            if job.at in (At.PAGE_EARLY, At.PAGE, At.POST, At.COMPLETE):
                yield self._deliver(state, number, work, index)
                return

    def _claim(self, state: State, number: int, work: Work, index: int) -> State:
        job = work.jobs[index]
        item = state.item(job.message)
        if item is not None:
            held_by = f"{job.message}/{item.receive_count}"
            standing = Standing("m", item.receive_count, held_by, NOW, item.completed)
            if isinstance(decide(standing, Claimant("m", job.receive_count, job.claim_id, 0), NOW), NotClaimed):
                return state.with_work(number, work.replace(index, job._replace(at=At.GONE)))
        offset = item.offset if item is not None and self.variant.keeps_offset else None
        at = At.APPEND if offset is None else At.PAGE
        if at is At.APPEND and not self.variant.appends_before_paging:
            at = At.PAGE_EARLY
        claimed = state.with_items(**{job.message: Item(job.receive_count, offset)})
        return claimed.with_work(number, work.replace(index, job._replace(at=at, offset=offset or 0)))

    def _deliver(self, state: State, number: int, work: Work, index: int) -> State:
        job = work.jobs[index]
        client = state.client
        if job.at is At.PAGE_EARLY:
            job = job._replace(at=At.APPEND, saw_member=client.is_member)
        elif job.at is At.PAGE:
            saw_member = client.is_member if self.variant.appends_before_paging else job.saw_member
            job = job._replace(at=At.POST, saw_member=saw_member)
        elif job.at is At.POST:
            if job.saw_member:
                client = client._replace(live=client.live | {(job.offset, job.message)})
            job = job._replace(at=At.COMPLETE)
        else:
            job = job._replace(at=At.GONE)
            state = state.with_items(**{job.message: Item(job.receive_count, completed=True)})
        return state._replace(client=client).with_work(number, work.replace(index, job))

    def _append(self, state: State, number: int, work: Work, waiting: list[int]) -> Iterator[State]:
        jobs = [work.jobs[index] for index in waiting]
        first = work.known.next_offset(work.clock_ms)
        offsets = [first + more for more in range(len(jobs))]
        if not self.variant.is_transaction:
            yield from self._count_and_put(state, number, work, waiting[0])
            return
        conflict = self._conflict(state, work, jobs, offsets)
        if conflict is not None:
            changed = work.seeing(work.known.after_conflict(conflict, offsets))
            for each, index in enumerate(waiting):
                result = outcome(each, conflict)
                if isinstance(result, NotAppended):
                    changed = changed.replace(index, work.jobs[index]._replace(at=At.GONE))
                elif result is not None:
                    changed = changed.replace(index, work.jobs[index]._replace(at=At.PAGE, offset=result))
            yield state.with_work(number, changed)
            return
        items = {
            job.message: (state.item(job.message) or Item(0))._replace(offset=offset)
            for job, offset in zip(jobs, offsets, strict=True)
        }
        entries = [(offset, job.message) for job, offset in zip(jobs, offsets, strict=True)]
        kept = dict(state.entries)
        executed = state.with_items(**items)._replace(
            head=offsets[-1], entries=tuple(sorted({**kept, **dict(entries)}.items()))
        )
        changed = work.seeing(work.known.after(SeenHead.at(offsets[-1])))
        for index, offset in zip(waiting, offsets, strict=True):
            changed = changed.replace(index, work.jobs[index]._replace(at=At.PAGE, offset=offset))
        yield executed.with_work(number, changed)
        if work.losses:  # it repeats the transaction, as if the service had forgotten the token
            yield executed.with_work(number, work._replace(losses=work.losses - 1))

    def _conflict(self, state: State, work: Work, jobs: list[Job], offsets: list[int]) -> Conflict | None:
        """What DynamoDB responds to the transaction if it does not execute it."""
        occupied = dict(state.entries)
        recorded: dict[int, int] = {}
        taken_over = set()
        for number, job in enumerate(jobs):
            item = state.item(job.message)
            if item is None or item.completed or item.receive_count != job.receive_count:
                taken_over.add(number)
            elif item.offset is not None:
                recorded[number] = item.offset
        if not self.variant.checks_claim:
            taken_over, recorded = set(), {}
        head_changed = state.head != work.head and self.variant.checks_head
        conflict = Conflict(
            head=SeenHead.at(state.head) if head_changed and state.head is not None else None,
            head_changed=head_changed,
            occupied=frozenset(number for number, offset in enumerate(offsets) if offset in occupied),
            recorded=recorded,
            taken_over=frozenset(taken_over),
        )
        if not self.variant.checks_head:  # a put without a condition
            conflict = Conflict(recorded=recorded, taken_over=frozenset(taken_over))
            return conflict if recorded or taken_over else None
        return conflict if conflict != Conflict() else None

    def _count_and_put(self, state: State, number: int, work: Work, index: int) -> Iterator[State]:
        job = work.jobs[index]
        if not job.offset:
            counted = work.clock_ms if state.head is None else state.head + 1
            changed = work.replace(index, job._replace(offset=counted))
            yield state._replace(head=counted).with_work(number, changed)
        else:
            entries = tuple(sorted({**dict(state.entries), job.offset: job.message}.items()))
            yield state._replace(entries=entries).with_work(number, work.replace(index, job._replace(at=At.PAGE)))


def _settled(state: State, number: int) -> State:
    """What a worker without messages has seen makes no difference any more."""
    work = state.works[number]
    if all(job.at is At.GONE for job in work.jobs):
        return state.with_work(number, Work(tuple(Job(job.message, 0, At.GONE) for job in work.jobs), 0))
    return state
