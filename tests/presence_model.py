"""A model of presence, of which every schedule is explored: connections of one user that join, leave and disconnect.

Each call of the table and of the queue is one step, and steps of all requests, of the queue, of workers and of posts
interleave in every order. The decisions are the real ones of `gatecast.presence`. What is asserted: when nothing is
left to happen, the state that a member was notified of is the true one.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from gatecast.presence import PresenceItem, announces_join, departed_users, is_present

USER = "alice"
NOW_SECONDS = 2.0
EXPIRES_AT = 1_000_000.0

Announces = Callable[[Collection[PresenceItem], str, int | None, float], bool]


@dataclass(frozen=True)
class Variant:
    """The rules. The defaults are those of the routes, the worker and the reference for clients."""

    fifo: bool = False
    announces: Announces = announces_join
    time_before_query: bool = True
    """Whether the time of a join is taken before its query."""
    delayed: bool = True
    """Whether a standard queue keeps a departure back until its item is deleted."""
    latest_wins: bool = True
    """Whether a client keeps the event with the latest time, or else the last one it received."""
    looks: bool = True
    """Whether the worker reads who is present before it announces a departure."""
    fifo_announces_first: bool = False
    """Whether a departure precedes the deletion on a FIFO queue, too."""


class Request(NamedTuple):
    """A request that is being handled; `number` tells requests apart."""

    number: int
    kind: str
    """join, leave, slow_leave (the delay ends before the deletion) or disconnect."""
    connection: str
    joined_at_ms: int = 0
    """Of a join: the time of the request."""
    step: str = "start"
    written_at_ms: int | None = None
    """Of a join: the time in the item that it has written."""
    at_ms: int = 0
    """Of a join: the event's time."""


class Message(NamedTuple):
    """A broadcast on the queue or at a worker."""

    kind: str
    """joined, departed, or, while the worker reads: looking."""
    at_ms: int = 0
    behind: int = -1
    """The request before whose end, or deletion, it is not received."""


class State(NamedTuple):
    items: frozenset[tuple[str, int]]
    """Connections with an item, and the time in it. A joined-room item exists where it does, and for `members`."""
    members: frozenset[str]
    """Connections that have been members since before the room had presence, and have no item."""
    connected: frozenset[str]
    requests: frozenset[Request]
    queue: tuple[Message, ...]
    posts: tuple[tuple[int, bool], ...]
    """Events on their way to the member: their times, and whether the user has joined."""
    notified: tuple[int, bool]
    """The time of the event that holds, and whether the user is present according to it."""
    crashes: int
    """How many processes may still die."""


def explore(
    requests: Collection[Request],
    *,
    present: Collection[str] = (),
    members: Collection[str] = (),
    variant: Variant,
    crashes: int = 0,
) -> Counter[str]:
    """All schedules of these requests, from a state in which the connections of `present` are members.

    `members` are connections that joined before the room had presence. Returns how many states were visited, and how
    many ends are right and wrong.
    """
    start = State(
        items=frozenset((connection, number) for number, connection in enumerate(present, start=1)),
        members=frozenset(members),
        connected=frozenset({*present, *members, *(request.connection for request in requests)}),
        requests=frozenset(requests),
        queue=(),
        posts=(),
        notified=(0, bool(present)),
        crashes=crashes,
    )
    found: Counter[str] = Counter()
    seen = {start}
    waiting = [start]
    while waiting:
        state = waiting.pop()
        following = list(_following(state, variant))
        if not following:
            found["right" if state.notified[1] == bool(state.items) else "wrong"] += 1
        for each in map(_ranked, following):
            if each not in seen:
                seen.add(each)
                waiting.append(each)
    found["states"] = len(seen)
    return found


def _following(state: State, variant: Variant) -> Iterator[State]:
    for request in state.requests:
        others = state.requests - {request}
        for kind, step in (("join", _join), ("leave", _leave), ("slow_leave", _leave), ("disconnect", _disconnect)):
            if request.kind == kind:
                yield from step(state._replace(requests=others), request, variant)
    yield from _receive(state, variant)
    for post in dict.fromkeys(state.posts):
        posts = list(state.posts)
        posts.remove(post)
        yield _deliver(state._replace(posts=tuple(posts)), post, variant)


def _join(state: State, request: Request, variant: Variant) -> Iterator[State]:
    now = _now(state, request)
    match request.step:
        case "start" if request.connection not in state.connected:
            yield state  # not_connected
        case "start" | "enter":
            yield _write(state, request)
        case "written" if variant.time_before_query:
            yield _add(state, request._replace(step="query", at_ms=now))
        case "written" | "query":
            if variant.announces(_items(state), request.connection, request.written_at_ms, NOW_SECONDS):
                yield _add(state, request._replace(step="publish" if variant.time_before_query else "time"))
            else:
                yield state
        case "time":
            yield _add(state, request._replace(step="publish", at_ms=now))
        case "publish":
            yield state._replace(queue=(*state.queue, Message("joined", request.at_ms)))
    if request.step != "start" and state.crashes:  # the client receives no response, and retries later
        retry = Request(request.number, "join", request.connection, request.joined_at_ms + 10)
        yield _add(state._replace(crashes=state.crashes - 1), retry)


def _write(state: State, request: Request) -> State:
    """One of a join's two transactions: the second adds the item of a member."""
    if request.step == "start" and request.connection in state.members:
        return _add(state, request._replace(step="enter"))
    if request.step == "enter" and request.connection not in state.connected & state.members:
        return _add(state, request._replace(step="written"))  # it has left, or another join has written the item
    is_present = any(connection == request.connection for connection, _ in state.items)
    written_at_ms = None if is_present else request.joined_at_ms
    items = state.items if is_present else state.items | {(request.connection, request.joined_at_ms)}
    written = state._replace(items=items, members=state.members - {request.connection})
    return _add(written, request._replace(step="written", written_at_ms=written_at_ms))


def _leave(state: State, request: Request, variant: Variant) -> Iterator[State]:
    if request.step == "remove" or (request.step == "start" and request.connection in state.members):
        yield _remove(state, request)
        return
    item = next((each for each in state.items if each[0] == request.connection), None)
    first = variant.fifo_announces_first if variant.fifo else True
    is_delayed = variant.delayed and not variant.fifo and request.kind == "leave"
    departed = Message("departed", behind=request.number if is_delayed else -1)
    match request.step:
        case "start" if item is None:
            yield state
        case "start" if first:
            yield _add(state._replace(queue=(*state.queue, departed)), request._replace(step="delete"))
        case "start" | "delete" if item is None:
            yield state  # deleted by another request, which announces it
        case "start" | "delete":
            after = not first or request.kind == "slow_leave"
            deleted = state._replace(items=state.items - {item} if item else state.items)
            yield _add(deleted, request._replace(step="publish")) if after else deleted
        case "publish":
            yield state._replace(queue=(*state.queue, Message("departed")))
            if state.crashes:  # there is nothing left for a retry to do
                yield state._replace(crashes=state.crashes - 1)
    if request.step == "delete" and state.crashes:
        retry = Request(request.number, request.kind, request.connection)
        yield _add(state._replace(crashes=state.crashes - 1, queue=_released(state.queue, request)), retry)


def _remove(state: State, request: Request) -> State:
    """A member without an item leaves: it is read, and then deleted unless a join has written the item meanwhile."""
    if request.step == "start":
        return _add(state, request._replace(step="remove"))
    if any(connection == request.connection for connection, _ in state.items):
        return _add(state, request._replace(step="start"))
    return state._replace(members=state.members - {request.connection})


def _disconnect(state: State, request: Request, variant: Variant) -> Iterator[State]:
    """The connection first, so that no join can succeed; then its items are read, announced and deleted."""
    if request.step == "start":
        yield _add(state._replace(connected=state.connected - {request.connection}), request._replace(step="read"))
    elif request.step == "read":
        yield from _leave(state, request._replace(step="start", kind="leave"), variant)
    else:
        yield from _leave(state, request, variant)


def _receive(state: State, variant: Variant) -> Iterator[State]:
    """Several workers handle a standard queue's messages in any order; a FIFO queue's are handled one by one."""
    for index in range(min(1, len(state.queue)) if variant.fifo else len(state.queue)):
        message = state.queue[index]
        others = (*state.queue[:index], *state.queue[index + 1 :])
        if any(message.behind == request.number and request.step == "delete" for request in state.requests):
            continue
        match message.kind:
            case "joined":
                yield _post(state._replace(queue=others), (message.at_ms, True), variant)
            case "departed":
                looking = Message("looking", _now(state))
                yield state._replace(queue=(*state.queue[:index], looking, *state.queue[index + 1 :]))
            case "looking":
                handled = state._replace(queue=others)
                present = {USER} if variant.looks and is_present(_items(state), NOW_SECONDS) else set()
                is_absent = bool(departed_users((USER,), present))
                yield _post(handled, (message.at_ms, False), variant) if is_absent else handled
                if state.crashes:  # another worker takes over, and reads again
                    again = (*state.queue[:index], Message("departed"), *state.queue[index + 1 :])
                    yield state._replace(queue=again, crashes=state.crashes - 1)


def _post(state: State, event: tuple[int, bool], variant: Variant) -> State:
    if variant.fifo:  # the next broadcast of the room begins when this one has ended
        return _deliver(state, event, variant)
    return state._replace(posts=tuple(sorted((*state.posts, event))))


def _deliver(state: State, event: tuple[int, bool], variant: Variant) -> State:
    holds = event[0] > state.notified[0] or not variant.latest_wins
    return state._replace(notified=event) if holds else state


def _items(state: State) -> list[PresenceItem]:
    return [PresenceItem(USER, connection, at_ms, EXPIRES_AT) for connection, at_ms in sorted(state.items)]


def _add(state: State, request: Request) -> State:
    return state._replace(requests=state.requests | {request})


def _released(queue: tuple[Message, ...], request: Request) -> tuple[Message, ...]:
    """The messages of a request that has died: received once their delay has ended."""
    return tuple(each._replace(behind=-1) if each.behind == request.number else each for each in queue)


def _times(state: State) -> set[int]:
    return {
        0,
        state.notified[0],
        *(at_ms for at_ms, _ in state.posts),
        *(message.at_ms for message in state.queue),
        *(request.at_ms for request in state.requests),
    }


def _now(state: State, *requests: Request) -> int:
    """A time after all others: every step takes some."""
    return 1 + max(_times(state) | {request.at_ms for request in requests})


def _ranked(state: State) -> State:
    """The same state with times replaced by their ranks, and a standard queue in no order."""
    ranks = {at_ms: rank for rank, at_ms in enumerate(sorted(_times(state)))}
    return state._replace(
        notified=(ranks[state.notified[0]], state.notified[1]),
        posts=tuple(sorted((ranks[at_ms], joined) for at_ms, joined in state.posts)),
        queue=tuple(message._replace(at_ms=ranks[message.at_ms]) for message in state.queue),
        requests=frozenset(request._replace(at_ms=ranks[request.at_ms]) for request in state.requests),
    )
