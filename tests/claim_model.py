"""A model of everything that can befall two messages of one broadcast, explored exhaustively.

A room has two members. Its broadcast is published once or twice under one id (messages `a` and `b`). Workers receive,
claim by the real rule (`worker.decisions.claims.judge`), read, post, write checkpoints, delete the message and write down the
completion, each a step of its own. At any step a worker may crash, or stand still until its lease has ended and go on
later, knowing nothing of it; a message may be moved to the dead-letter queue and back, which gives it a new id. Time
passes in steps as well: a claim becomes abandoned unless somebody who is at work renews it.

`explore` walks through all schedules with so many crashes, stalls, moves, and outages in which a page cannot be read
for longer than a claim may be without being renewed. It says what went wrong.
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
    judge,
)

MEMBERS = 2
Rule = Callable[[Standing, Claimant, float], Resumption | NotClaimed]


class At(IntEnum):
    """Where a message is."""

    UNPUBLISHED = 0
    VISIBLE = 1
    HELD = 2
    DEAD = 3
    GONE = 4


class Step(IntEnum):
    """What a worker does next with a message."""

    CLAIM = 0
    READ = 1
    POST = 2
    END = 3


class Message(NamedTuple):
    id: str
    receives: int = 0
    at: At = At.VISIBLE


class Item(NamedTuple):
    """The progress item. `age` in seconds; `done` members are settled in its checkpoint."""

    message_id: str
    receives: int
    age: float = 0
    completed: bool = False
    done: int = 0


class Work(NamedTuple):
    """One receive of a message in a worker's hands. `done` members are settled."""

    message_id: str
    receives: int
    step: Step = Step.CLAIM
    done: int = 0
    late: bool = False
    """It knows that its claim is older than a claim may be without being renewed."""
    stalled: bool = False
    """Its lease may end while it goes on."""
    deletes: bool = True
    completes: bool = True

    def has(self, item: Item | None) -> bool:
        return (
            item is not None
            and not item.completed
            and (item.message_id, item.receives) == (self.message_id, self.receives)
        )


class Events(NamedTuple):
    """What may happen, and how often."""

    crashes: int = 0
    stalls: int = 0
    moves: int = 0
    outages: int = 0


class State(NamedTuple):
    messages: tuple[Message, ...]
    item: Item | None
    works: tuple[Work, ...]
    posts: tuple[int, ...]
    left: Events

    def replace_work(self, old: Work, new: Work | None) -> "State":
        works = list(self.works)
        works.remove(old)
        return self._replace(works=tuple(sorted([*works, new] if new else works, key=repr)))

    def replace_message(self, old: Message, new: Message) -> "State":
        return self._replace(messages=tuple(new if each is old else each for each in self.messages))

    def after(self, event: str) -> "State":
        """One event fewer is left."""
        return self._replace(left=self.left._replace(**{event: getattr(self.left, event) - 1}))

    def message_of(self, work: Work) -> Message | None:
        """The message, if no later receive has superseded this one."""
        wanted = (work.message_id, work.receives, At.HELD)
        return next((each for each in self.messages if each == wanted), None)

    @property
    def ended(self) -> bool:
        return not self.works and all(each.at in (At.GONE, At.UNPUBLISHED) for each in self.messages)


class Variant(NamedTuple):
    """What a worker does; the defaults are what ours do."""

    rule: Rule = judge
    completes: bool = True
    renews_before_posting: bool = True


def explore(events: Events, variant: Variant | None = None) -> Counter[str]:
    """How many states were visited and how many are ends, up to the first schedule in which somebody was lost or
    reached too often; and how many states are stuck: whatever happens, the queue is never empty.
    """
    variant = variant or Variant()
    messages = (Message("a"), Message("b", at=At.UNPUBLISHED))
    start = State(messages, None, (), (0,) * MEMBERS, events)
    found: Counter[str] = Counter()
    led_to_by: dict[State, list[State]] = {start: []}
    ends = []
    coming = deque([start])
    while coming:
        state = coming.popleft()
        if state.ended:
            ends.append(state)
            if wrong := list(_wrong(state, events)):
                found.update(wrong)
                return found
        must = list(_must(state, variant))
        for following in (*must, *_may(state)):
            if following not in led_to_by:
                led_to_by[following] = []
                coming.append(following)
        for following in must:
            led_to_by[following].append(state)
    found.update(visited=len(led_to_by), ended=len(ends), stuck=len(led_to_by) - _reaching(ends, led_to_by))
    return +found


def _reaching(ends: list[State], led_to_by: dict[State, list[State]]) -> int:
    """How many states lead to one of these ends, by what happens sooner or later alone."""
    reaching = set(ends)
    stack = list(ends)
    while stack:
        for state in led_to_by[stack.pop()]:
            if state not in reaching:
                reaching.add(state)
                stack.append(state)
    return len(reaching)


def _wrong(state: State, events: Events) -> Iterator[str]:
    if min(state.posts) < 1:
        yield "lost"
    crashes, stalls = events.crashes - state.left.crashes, events.stalls - state.left.stalls
    if max(state.posts) > 1 + crashes + stalls:
        yield "repeated"


def _must(state: State, variant: Variant) -> Iterator[State]:
    """What happens sooner or later."""
    for message in state.messages:
        if message.at is At.VISIBLE:
            received = message._replace(receives=message.receives + 1, at=At.HELD)
            following = state.replace_message(message, received)
            work = Work(message.id, received.receives, completes=variant.completes)
            yield following._replace(works=tuple(sorted([*state.works, work], key=repr)))
        elif message.at is At.HELD and not any(
            (work.message_id, work.receives, work.stalled) == (message.id, message.receives, False)
            for work in state.works
        ):
            yield state.replace_message(message, message._replace(at=At.VISIBLE))
        elif message.at is At.DEAD:
            yield state.replace_message(message, Message(f"{message.id}'"))
    for work in state.works:
        yield from _steps(state, work, variant)
    yield from _aged(state)


def _aged(state: State) -> Iterator[State]:
    """The claim is abandoned, unless somebody at work renews it."""
    item = state.item
    if item is None or item.completed or item.age:
        return
    if all(work.stalled for work in state.works if work.has(item)):
        yield state._replace(item=item._replace(age=ABANDONED_SECONDS))


def _aged_in_an_outage(state: State) -> Iterator[State]:
    """Nobody renews it before the first page has come."""
    item = state.item
    if item is None or item.completed or item.age or not state.left.outages:
        return
    for work in state.works:
        if work.has(item) and work.step is Step.READ:
            following = state.replace_work(work, work._replace(late=True))
            yield following._replace(item=item._replace(age=ABANDONED_SECONDS)).after("outages")


def _may(state: State) -> Iterator[State]:
    """What happens or not."""
    for message in state.messages:
        if message.at is At.UNPUBLISHED:
            yield state.replace_message(message, message._replace(at=At.VISIBLE))
        elif message.at is At.VISIBLE and state.left.moves:
            yield state.replace_message(message, message._replace(at=At.DEAD)).after("moves")
    yield from _aged_in_an_outage(state)
    for work in state.works:
        if state.left.crashes:
            yield state.replace_work(work, None).after("crashes")
        if state.left.stalls and not work.stalled:
            yield state.replace_work(work, work._replace(stalled=True)).after("stalls")


def _steps(state: State, work: Work, variant: Variant) -> Iterator[State]:
    item = state.item
    if work.step is Step.CLAIM:
        yield _claim(state, work, variant.rule)
    elif work.step is Step.READ:
        if variant.renews_before_posting and work.late and not work.has(item):
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
        if not work.has(item):  # its next checkpoint is refused
            yield state.replace_work(work, None)
        elif item and item.done < work.done:
            yield state._replace(item=item._replace(age=0, done=work.done))
    else:
        yield from _endings(state, work)


def _claim(state: State, work: Work, rule: Rule) -> State:
    item = state.item
    claimant = Claimant(work.message_id, work.receives, f"{work.message_id}/{work.receives}", 0)
    verdict: Resumption | NotClaimed = Resumption.FROM_START
    if item is not None:
        held_by = f"{item.message_id}/{item.receives}"
        now = float(DUPLICATE_SECONDS)
        standing = Standing(item.message_id, item.receives, held_by, now - item.age, item.completed)
        verdict = rule(standing, claimant, now)
    message = state.message_of(work)
    if isinstance(verdict, Resumption):
        done = item.done if item and verdict is Resumption.FROM_CHECKPOINT else 0
        taken = Item(work.message_id, work.receives, done=done)
        return state.replace_work(work, work._replace(step=Step.READ, done=done))._replace(item=taken)
    if verdict is NotClaimed.COMPLETED:
        return state.replace_work(work, work._replace(step=Step.END, completes=False))
    following = state.replace_work(work, None)
    if verdict is NotClaimed.HELD and message is not None:  # that it was received has left no trace
        return following.replace_message(message, message._replace(receives=work.receives - 1, at=At.VISIBLE))
    return following


def _endings(state: State, work: Work) -> Iterator[State]:
    """The deletion and the completion, in any order. A superseded receipt deletes nothing, and nobody says so."""
    if not work.deletes and not work.completes:
        yield state.replace_work(work, None)
    if work.deletes:
        following = state.replace_work(work, work._replace(deletes=False))
        message = state.message_of(work)
        yield following.replace_message(message, message._replace(at=At.GONE)) if message else following
    if work.completes:
        completed = Item(work.message_id, 0, completed=True)
        yield state.replace_work(work, work._replace(completes=False))._replace(item=completed)
