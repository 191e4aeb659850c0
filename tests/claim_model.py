"""A model of everything that can happen to two messages of one broadcast, explored exhaustively.

A room has two members. Its broadcast is published once or twice under one id (messages `a` and `b`). Workers receive,
claim by the real rule (`worker.decisions.claims.decide`), read, post, write checkpoints, delete the message and record
the completion; each of these is a separate step. At any step a worker may crash, or stall until its lease has expired
and continue later without noticing; a message may be moved to the dead-letter queue and back, which gives it a new id.
Time passes in steps as well: a claim becomes abandoned unless a running worker renews it.

`explore` walks through all schedules with a given number of crashes, stalls, moves, and outages during which a page
cannot be read for longer than a claim stays valid without renewal. It returns which guarantees were violated.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import NamedTuple

from worker.decisions.claims import (
    ABANDONED_SECONDS,
    DUPLICATE_SECONDS,
    Claimant,
    NotClaimed,
    Resumption,
    Standing,
    decide,
)

MEMBERS = 2
Rule = Callable[[Standing, Claimant, float], Resumption | NotClaimed]


class At(IntEnum):
    """The state of a message."""

    UNPUBLISHED = 0
    VISIBLE = 1
    HELD = 2
    DEAD = 3
    GONE = 4


class Step(IntEnum):
    """The next step of a worker with a message."""

    CLAIM = 0
    READ = 1
    POST = 2
    END = 3


class Message(NamedTuple):
    id: str
    receive_count: int = 0
    at: At = At.VISIBLE


class Item(NamedTuple):
    """The progress item. `age` in seconds; `done` members are settled in its checkpoint."""

    message_id: str
    receive_count: int
    age: float = 0
    completed: bool = False
    done: int = 0


class Work(NamedTuple):
    """A worker's work on one receive of a message. `done` members are settled."""

    message_id: str
    receive_count: int
    step: Step = Step.CLAIM
    done: int = 0
    late: bool = False
    """Its claim is older than a claim may be without renewal, and the worker has noticed."""
    stalled: bool = False
    """Its lease may expire while it continues."""
    deletes: bool = True
    completes: bool = True

    def holds(self, item: Item | None) -> bool:
        return (
            item is not None
            and not item.completed
            and (item.message_id, item.receive_count) == (self.message_id, self.receive_count)
        )


class Events(NamedTuple):
    """How often each kind of event may happen."""

    crashes: int = 0
    stalls: int = 0
    moves: int = 0
    outages: int = 0


class State(NamedTuple):
    messages: tuple[Message, ...]
    item: Item | None
    works: tuple[Work, ...]
    posts: tuple[int, ...]
    remaining: Events

    def replace_work(self, old: Work, new: Work | None) -> "State":
        works = list(self.works)
        works.remove(old)
        return self._replace(works=tuple(sorted([*works, new] if new else works, key=repr)))

    def replace_message(self, old: Message, new: Message) -> "State":
        return self._replace(messages=tuple(new if each is old else each for each in self.messages))

    def after(self, event: str) -> "State":
        """The state with one event of this kind fewer remaining."""
        return self._replace(remaining=self.remaining._replace(**{event: getattr(self.remaining, event) - 1}))

    def message_of(self, work: Work) -> Message | None:
        """The message, if no later receive has superseded this one."""
        wanted = (work.message_id, work.receive_count, At.HELD)
        return next((each for each in self.messages if each == wanted), None)

    @property
    def ended(self) -> bool:
        return not self.works and all(each.at in (At.GONE, At.UNPUBLISHED) for each in self.messages)


class Variant(NamedTuple):
    """The behaviour of workers; the defaults match the real one."""

    rule: Rule = decide
    completes: bool = True
    renews_before_posting: bool = True


def explore(events: Events, variant: Variant | None = None) -> Counter[str]:
    """Counts the visited and the final states, up to the first schedule that loses a member or repeats too many posts;
    and the states that are stuck: from these the queue never becomes empty.
    """
    variant = variant or Variant()
    messages = (Message("a"), Message("b", at=At.UNPUBLISHED))
    start = State(messages, None, (), (0,) * MEMBERS, events)
    counts: Counter[str] = Counter()
    predecessors: dict[State, list[State]] = {start: []}
    ends = []
    pending = deque([start])
    while pending:
        state = pending.popleft()
        if state.ended:
            ends.append(state)
            if violations := list(_violations(state, events)):
                counts.update(violations)
                return counts
        inevitable = list(_inevitable(state, variant))
        for following in (*inevitable, *_possible(state)):
            if following not in predecessors:
                predecessors[following] = []
                pending.append(following)
        for following in inevitable:
            predecessors[following].append(state)
    counts.update(visited=len(predecessors), ended=len(ends), stuck=len(predecessors) - _reaching(ends, predecessors))
    return +counts


def _reaching(ends: list[State], predecessors: dict[State, list[State]]) -> int:
    """The number of states that lead to one of these ends by inevitable steps alone."""
    reaching = set(ends)
    stack = list(ends)
    while stack:
        for state in predecessors[stack.pop()]:
            if state not in reaching:
                reaching.add(state)
                stack.append(state)
    return len(reaching)


def _violations(state: State, events: Events) -> Iterator[str]:
    if min(state.posts) < 1:
        yield "lost"
    crashes, stalls = events.crashes - state.remaining.crashes, events.stalls - state.remaining.stalls
    if max(state.posts) > 1 + crashes + stalls:
        yield "repeated"


def _inevitable(state: State, variant: Variant) -> Iterator[State]:
    """The steps that are inevitable sooner or later."""
    for message in state.messages:
        if message.at is At.VISIBLE:
            received = message._replace(receive_count=message.receive_count + 1, at=At.HELD)
            following = state.replace_message(message, received)
            work = Work(message.id, received.receive_count, completes=variant.completes)
            yield following._replace(works=tuple(sorted([*state.works, work], key=repr)))
        elif message.at is At.HELD and not any(
            (work.message_id, work.receive_count, work.stalled) == (message.id, message.receive_count, False)
            for work in state.works
        ):
            yield state.replace_message(message, message._replace(at=At.VISIBLE))
        elif message.at is At.DEAD:
            yield state.replace_message(message, Message(f"{message.id}'"))
    for work in state.works:
        yield from _steps(state, work, variant)
    yield from _aged(state)


def _aged(state: State) -> Iterator[State]:
    """The claim becomes abandoned, unless a running worker renews it."""
    item = state.item
    if item is None or item.completed or item.age:
        return
    if all(work.stalled for work in state.works if work.holds(item)):
        yield state._replace(item=item._replace(age=ABANDONED_SECONDS))


def _aged_in_an_outage(state: State) -> Iterator[State]:
    """The claim becomes abandoned during an outage: it is not renewed before the first page has been read."""
    item = state.item
    if item is None or item.completed or item.age or not state.remaining.outages:
        return
    for work in state.works:
        if work.holds(item) and work.step is Step.READ:
            following = state.replace_work(work, work._replace(late=True))
            yield following._replace(item=item._replace(age=ABANDONED_SECONDS)).after("outages")


def _possible(state: State) -> Iterator[State]:
    """The events that may or may not happen."""
    for message in state.messages:
        if message.at is At.UNPUBLISHED:
            yield state.replace_message(message, message._replace(at=At.VISIBLE))
        elif message.at is At.VISIBLE and state.remaining.moves:
            yield state.replace_message(message, message._replace(at=At.DEAD)).after("moves")
    yield from _aged_in_an_outage(state)
    for work in state.works:
        if state.remaining.crashes:
            yield state.replace_work(work, None).after("crashes")
        if state.remaining.stalls and not work.stalled:
            yield state.replace_work(work, work._replace(stalled=True)).after("stalls")


def _steps(state: State, work: Work, variant: Variant) -> Iterator[State]:
    item = state.item
    if work.step is Step.CLAIM:
        yield _claim(state, work, variant.rule)
    elif work.step is Step.READ:
        if variant.renews_before_posting and work.late and not work.holds(item):
            yield state.replace_work(work, None)
        else:
            renewed = item._replace(age=0) if item and variant.renews_before_posting and work.late else item
            yield state.replace_work(work, work._replace(step=Step.POST, late=False))._replace(item=renewed)
    elif work.step is Step.POST:
        if work.done == MEMBERS:
            yield state.replace_work(work, work._replace(step=Step.END))
        else:
            posts = tuple(count + (member == work.done) for member, count in enumerate(state.posts))
            yield state.replace_work(work, work._replace(done=work.done + 1))._replace(posts=posts)
        if not work.holds(item):  # its next checkpoint is rejected
            yield state.replace_work(work, None)
        elif item and item.done < work.done:
            yield state._replace(item=item._replace(age=0, done=work.done))
    else:
        yield from _endings(state, work)


def _claim(state: State, work: Work, rule: Rule) -> State:
    item = state.item
    claimant = Claimant(work.message_id, work.receive_count, f"{work.message_id}/{work.receive_count}", 0)
    verdict: Resumption | NotClaimed = Resumption.FROM_START
    if item is not None:
        held_by = f"{item.message_id}/{item.receive_count}"
        now = float(DUPLICATE_SECONDS)
        standing = Standing(item.message_id, item.receive_count, held_by, now - item.age, item.completed)
        verdict = rule(standing, claimant, now)
    message = state.message_of(work)
    if isinstance(verdict, Resumption):
        done = item.done if item and verdict is Resumption.FROM_CHECKPOINT else 0
        taken = Item(work.message_id, work.receive_count, done=done)
        return state.replace_work(work, work._replace(step=Step.READ, done=done))._replace(item=taken)
    if verdict is NotClaimed.COMPLETED:
        return state.replace_work(work, work._replace(step=Step.END, completes=False))
    following = state.replace_work(work, None)
    if verdict is NotClaimed.HELD and message is not None:  # this receive has left no trace
        return following.replace_message(message, message._replace(receive_count=work.receive_count - 1, at=At.VISIBLE))
    return following


def _endings(state: State, work: Work) -> Iterator[State]:
    """The deletion and the completion, in any order. A superseded receipt handle deletes nothing, without an error."""
    if not work.deletes and not work.completes:
        yield state.replace_work(work, None)
    if work.deletes:
        following = state.replace_work(work, work._replace(deletes=False))
        message = state.message_of(work)
        yield following.replace_message(message, message._replace(at=At.GONE)) if message else following
    if work.completes:
        completed = Item(work.message_id, 0, completed=True)
        yield state.replace_work(work, work._replace(completes=False))._replace(item=completed)
