"""A model of workers that deliver the parts of one broadcast until its receipt is sent, explored exhaustively.

The broadcast is delivered as a whole, or split into shards. Some members are slow: they may leave their part as a
remainder, which is sent as a part of its own, or get an outcome where they are. Workers claim by the real rule
(`worker.decisions.claims.decide`); what the shared receipt contains is decided by the real `worker.decisions.receipts`.
Each call is a step of its own. At any step a worker may crash, or stall until its lease has expired and continue
without noticing; a write may arrive a second time, later; a part that is sent twice is two messages.

`explore` walks through all schedules. It returns which guarantees were violated.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from enum import IntEnum
from functools import reduce
from itertools import product
from typing import NamedTuple

from msgspec.structs import replace

from worker.decisions.claims import ABANDONED_SECONDS, DUPLICATE_SECONDS, Claimant, NotClaimed, Standing, decide
from worker.decisions.receipts import ITSELF, ReceiptState, SharedReceipt, Sums, end, expect

NOW = float(DUPLICATE_SECONDS)
ROOT = ""
OUTCOMES = ("delivered", "gone", "expired", "rejected")
"""Each member has an outcome of its own, so that the sums show which members were counted, and how often."""


class At(IntEnum):
    """The next step of a worker with a message."""

    CLAIM = 0
    WORK = 1
    EXPECT = 2
    SEND = 3
    CLOSE = 4
    END = 5
    RECEIPT = 6
    DELETE = 7
    COMPLETE = 8


class Scene(NamedTuple):
    """What is published: the members of each part, and which of them are slow. A split broadcast has shards."""

    members: Mapping[str, tuple[int, ...]]
    slow: frozenset[int] = frozenset()
    fickle: frozenset[int] = frozenset()
    """Members whose outcome may be another one when they are posted to again."""

    @property
    def shards(self) -> tuple[str, ...]:
        return tuple(part for part in self.members if part.startswith("s"))

    def outcomes(self, member: int) -> tuple[str, ...]:
        return (OUTCOMES[member], "undelivered") if member in self.fickle else (OUTCOMES[member],)

    @property
    def truths(self) -> set[Sums]:
        """The sums in which each member has exactly one outcome that it may have."""
        members = sorted({member for its in self.members.values() for member in its})
        each = [[Sums(**{outcome: 1}) for outcome in self.outcomes(member)] for member in members]
        return {reduce(Sums.plus, choice, Sums()) for choice in product(*each)}


class Events(NamedTuple):
    """How often each kind of event may happen."""

    crashes: int = 0
    stalls: int = 0
    late_writes: int = 0


class Variant(NamedTuple):
    """The behaviour of workers; the defaults match the real one."""

    expects_first: bool = True
    """Whether a part is expected before it is sent."""
    stores_first: bool = True
    """Whether the state contains what is sent before it is expected."""
    stores_end: bool = True
    """Whether the end is stored before the receipt is sent."""
    ends_once: bool = True
    expects_itself: bool = True
    keeps_begin: bool = True
    """Whether the state says that the shared receipt has been begun."""
    numbers_writes: bool = True


class Message(NamedTuple):
    part: str
    copy: int = 0
    receive_count: int = 0
    held: bool = False

    @property
    def id(self) -> str:
        return f"{self.part}/{self.copy}"


class Item(NamedTuple):
    """A progress item: the claim, and the checkpoint with its receipt state."""

    message_id: str
    receive_count: int
    age: float = 0
    completed: bool = False
    settled: frozenset[int] = frozenset()
    """Members that are not pending, because they have an outcome or have left."""
    state: ReceiptState = ReceiptState()


class Job(NamedTuple):
    """A worker's work on one receive of a message."""

    part: str
    copy: int
    receive_count: int
    at: At = At.CLAIM
    settled: frozenset[int] = frozenset()
    state: ReceiptState = ReceiptState()
    to_send: tuple[str, ...] = ()
    sums: Sums = Sums()
    """Of the receipt to send."""
    stalled: bool = False

    @property
    def message_id(self) -> str:
        return f"{self.part}/{self.copy}"

    def holds(self, item: Item | None) -> bool:
        wanted = (self.message_id, self.receive_count, False)
        return item is not None and (item.message_id, item.receive_count, item.completed) == wanted


class State(NamedTuple):
    messages: frozenset[Message]
    remaining: Events
    items: frozenset[tuple[str, Item]] = frozenset()
    jobs: frozenset[Job] = frozenset()
    shared: SharedReceipt | None = None
    receipts: frozenset[Sums] = frozenset()
    late: frozenset[tuple[str, Item]] = frozenset()
    """Writes that may arrive a second time, with their part."""

    def item(self, part: str) -> Item | None:
        return dict(self.items).get(part)

    def put(self, part: str, item: Item) -> "State":
        return self._replace(items=frozenset({**dict(self.items), part: item}.items()))

    def job(self, old: Job, new: Job | None) -> "State":
        return self._replace(jobs=self.jobs - {old} | ({new} if new else set()))

    def message(self, old: Message, *new: Message) -> "State":
        return self._replace(messages=self.messages - {old} | set(new))

    def after(self, event: str) -> "State":
        return self._replace(remaining=self.remaining._replace(**{event: getattr(self.remaining, event) - 1}))


def explore(scene: Scene, events: Events, variant: Variant | None = None) -> Counter[str]:
    """Counts the visited and the final states, and the final states that violate a guarantee, by guarantee."""
    model = _Model(scene, variant or Variant())
    counts: Counter[str] = Counter()
    start = State(frozenset({Message(ROOT)}), events)
    seen, stack = {start}, [start]
    while stack:
        state = stack.pop()
        following = list(model.following(state))
        if not state.jobs and not state.messages:
            counts.update(("ended", *_violations(state, scene)))
        elif not following:
            counts["stuck"] += 1
        for each in following:
            if each not in seen:
                seen.add(each)
                stack.append(each)
    counts["visited"] = len(seen)
    return +counts


def _violations(state: State, scene: Scene) -> Iterator[str]:
    if not state.receipts:
        yield "none"
    if len(state.receipts) > 1:
        yield "different"
    if state.receipts - scene.truths:
        yield "false"


class _Model:
    def __init__(self, scene: Scene, variant: Variant) -> None:
        self._scene = scene
        self._variant = variant

    def following(self, state: State) -> Iterator[State]:
        yield from self._messages(state)
        for part, late in state.late:
            yield self._arrives_late(state, part, late)
        for job in state.jobs:
            yield from self._steps(state, job)
            if state.remaining.crashes:
                yield state.job(job, None).after("crashes")
            if state.remaining.stalls and not job.stalled and job.at is not At.CLAIM:
                yield state.job(job, job._replace(stalled=True)).after("stalls")

    def _messages(self, state: State) -> Iterator[State]:
        for message in state.messages:
            if message.held:
                if not any(
                    (job.message_id, job.receive_count, job.stalled) == (message.id, message.receive_count, False)
                    for job in state.jobs
                ):
                    yield state.message(message, message._replace(held=False))
                continue
            item = state.item(message.part)
            if item is not None and item.message_id != message.id and not item.completed and not item.age:
                # received now it would only wait; it waits until the claim is abandoned, or completed
                if not any(job.holds(item) and not job.stalled for job in state.jobs):
                    yield state.put(message.part, item._replace(age=ABANDONED_SECONDS))
                continue
            count = message.receive_count + 1
            received = state.message(message, message._replace(receive_count=count, held=True))
            yield received._replace(jobs=received.jobs | {Job(message.part, message.copy, count)})

    def _arrives_late(self, state: State, part: str, late: Item) -> State:
        after = state._replace(late=state.late - {(part, late)})
        item = state.item(part)
        if (
            item is None
            or item.completed
            or (item.message_id, item.receive_count)
            != (
                late.message_id,
                late.receive_count,
            )
        ):
            return after
        if self._variant.numbers_writes and item.state.revision > late.state.revision:
            return after
        return after.put(part, late)

    def _steps(self, state: State, job: Job) -> Iterator[State]:
        match job.at:
            case At.CLAIM:
                yield self._claim(state, job)
            case At.WORK:
                yield from self._work(state, job)
            case At.EXPECT:
                yield self._expect(state, job)
            case At.SEND:
                yield self._send(state, job)
            case At.CLOSE:
                if self._variant.stores_end:
                    yield from self._write(state, job, job._replace(at=At.END))
                else:
                    yield state.job(job, job._replace(at=At.END))
            case _:
                yield self._finish(state, job)

    def _finish(self, state: State, job: Job) -> State:
        if job.at is At.END:
            return self._end(state, job)
        if job.at is At.RECEIPT:
            return state._replace(receipts=state.receipts | {job.sums}).job(job, job._replace(at=At.DELETE))
        if job.at is At.DELETE:
            held = Message(job.part, job.copy, job.receive_count, held=True)
            after = state.job(job, job._replace(at=At.COMPLETE))
            return after.message(held) if held in state.messages else after
        return state.put(job.part, Item(job.message_id, 0, completed=True)).job(job, None)

    def _claim(self, state: State, job: Job) -> State:
        item = state.item(job.part) or Item(job.message_id, 0)
        standing = Standing(
            item.message_id, item.receive_count, _claim_id(item), NOW - item.age, completed=item.completed
        )
        verdict = decide(standing, Claimant(job.message_id, job.receive_count, _claim_id(job), 0), NOW)
        if verdict is NotClaimed.COMPLETED:
            return state.job(job, job._replace(at=At.DELETE))
        if isinstance(verdict, NotClaimed):
            return state.job(job, None)
        found = replace(item.state, revision=0)
        claimed = state.put(job.part, Item(job.message_id, job.receive_count, settled=item.settled, state=found))
        started = job._replace(at=At.WORK, settled=item.settled, state=found)
        if found.has_ended:
            started = started._replace(at=At.END)
        elif found.handed_off:
            started = self._sending(started, _remainder(found.handed_off))
        return claimed.job(job, started)

    def _work(self, state: State, job: Job) -> Iterator[State]:
        scene = self._scene
        if job.part == ROOT and scene.shards:
            keeps = job.state.begun_by and self._variant.keeps_begin
            begun = replace(job.state, begun_by=job.state.begun_by if keeps else _claim_id(job))
            yield from self._write(state, job, self._sending(job, *scene.shards)._replace(state=begun))
            return
        pending = [member for member in self._members(job.part) if member not in job.settled]
        for member in pending:
            for outcome in scene.outcomes(member):
                sums = job.state.sums.plus(Sums(**{outcome: 1}))
                settled = job._replace(settled=job.settled | {member}, state=replace(job.state, sums=sums))
                yield state.job(job, settled)
            if member in scene.slow and not job.part.startswith("r"):
                yield from self._leave(state, job, member)
        item = state.item(job.part)
        if item is not None and (item.settled, item.state.sums) != (job.settled, job.state.sums):
            yield from self._write(state, job, job)
        if not pending:
            yield state.job(job, job._replace(at=At.CLOSE, state=replace(job.state, milliseconds=1)))

    def _leave(self, state: State, job: Job, member: int) -> Iterator[State]:
        begun_by = "" if job.part else job.state.begun_by or _claim_id(job)
        leaving = replace(job.state, handed_off=(str(member),), begun_by=begun_by)
        sending = self._sending(job, _remainder(leaving.handed_off))._replace(state=leaving)
        if self._variant.stores_first:
            yield from self._write(state, job, sending)
        else:
            yield state.job(job, sending)

    def _members(self, part: str) -> tuple[int, ...]:
        return (int(part[-1]),) if part.startswith("r") else self._scene.members[part]

    def _write(self, state: State, job: Job, after: Job) -> Iterator[State]:
        """Write the state after a step, if the claim is still held."""
        item = state.item(job.part)
        if not job.holds(item):
            yield state.job(job, None)
            return
        after = after._replace(state=replace(after.state, revision=job.state.revision + 1))
        written = Item(job.message_id, job.receive_count, settled=after.settled, state=after.state)
        following = state.put(job.part, written).job(job, after)
        yield following
        if state.remaining.late_writes:
            yield following._replace(late=following.late | {(job.part, written)}).after("late_writes")

    def _sending(self, job: Job, *parts: str) -> Job:
        return job._replace(at=At.EXPECT if self._variant.expects_first else At.SEND, to_send=parts)

    def _expect(self, state: State, job: Job) -> State:
        begun_by = job.state.begun_by
        itself = {ITSELF} if begun_by and self._variant.expects_itself else set()
        expected = expect(state.shared, begun_by, frozenset(job.to_send) | itself)
        after = job._replace(at=At.SEND) if self._variant.expects_first else self._sent(job)
        return state._replace(shared=expected).job(job, after)

    def _send(self, state: State, job: Job) -> State:
        messages = set(state.messages)
        for part in job.to_send:
            again = state.item(part) is not None or Message(part) in messages
            if not any((each.part, each.copy) == (part, int(again)) for each in messages):
                messages.add(Message(part, int(again)))
        after = self._sent(job) if self._variant.expects_first else job._replace(at=At.EXPECT)
        return state._replace(messages=frozenset(messages)).job(job, after)

    def _sent(self, job: Job) -> Job:
        """What has been sent is a part of its own: its members have left."""
        left = frozenset(int(member) for member in job.state.handed_off)
        sent = job._replace(to_send=(), settled=job.settled | left, state=replace(job.state, handed_off=()))
        if job.part == ROOT and self._scene.shards:
            return sent._replace(at=At.CLOSE, state=replace(sent.state, milliseconds=0))
        return sent._replace(at=At.WORK)

    def _end(self, state: State, job: Job) -> State:
        if not (job.part or job.state.begun_by):
            return state.job(job, job._replace(at=At.RECEIPT, sums=job.state.sums))
        name = job.part or ITSELF
        before = state.shared
        if before is not None and not self._variant.ends_once:
            before = before._replace(ended=before.ended - {name})
        if before is not None and not self._variant.expects_itself:
            before = before._replace(expected=before.expected | {name})
        ended = end(before, name, job.state.sums, 0)
        if ended is None:
            return state.job(job, job._replace(at=At.DELETE))
        after = job._replace(at=At.RECEIPT if ended.is_complete else At.DELETE, sums=ended.sums)
        return state._replace(shared=ended).job(job, after)


def _remainder(members: tuple[str, ...]) -> str:
    return f"r{members[0]}"


def _claim_id(holder: Job | Item) -> str:
    return f"{holder.message_id}/{holder.receive_count}"
