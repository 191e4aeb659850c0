"""Model of one room and the client's sequence: whatever the network does, each message once and in order, or a report.

The room's log is dense. Frames may be reordered, repeated and lost with their connection; responses of `join` and
`history` are made when the server reads, and arrive later, in any order; entries expire; some offsets are skipped for
this client. At the end everything arrives that has not been lost, and the client asks for what it lacks.
"""

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatecast.client.events import Message, Recovered
from gatecast.client.sequence import Ask, Delivery, Page, RoomSequence

FIRST = 100
PAGE_SIZE = 3
STEPS = (
    "publish",
    "publish",
    "skip",
    "frame",
    "frame",
    "repeat",
    "cut",
    "join",
    "respond",
    "history",
    "expire",
    "full",
)


@dataclass
class World:
    """The server, the network and the client."""

    rng: random.Random
    sequence: RoomSequence
    head: int = FIRST
    floor: int = FIRST
    """Entries up to this offset have expired."""
    skipped: set[int] = field(default_factory=set)
    is_member: bool = False
    frames: list[int] = field(default_factory=list)
    """On their way to the client; a negative offset is a skipped one."""
    responses: list[tuple[str, Ask | int, Page]] = field(default_factory=list)
    delivered: list[Delivery] = field(default_factory=list)
    began_at: int | None = None
    """The position at which the client's first join began."""

    def step(self, name: str) -> None:  # noqa: C901 - one case per step
        match name:
            case "publish" | "skip":
                self.head += 1
                if name == "skip":
                    self.skipped.add(self.head)
                if self.is_member:
                    self.frames.append(self.head)
            case "frame" if self.frames:
                self.arrive(self.frames.pop(self.rng.randrange(len(self.frames))))
            case "repeat" if self.frames:
                self.arrive(self.rng.choice(self.frames))
            case "full" if self.frames:
                self.arrive(self.frames.pop(0), room_left=False)
            case "cut":
                self.is_member = False
                self.frames.clear()
                self.responses.clear()
            case "join":
                self.is_member = True
                ask = self.sequence.ask()
                self.responses.append(("join", ask, self.page(ask)))
            case "history" if self.is_member and self.sequence.wants() and self.sequence.position is not None:
                since = self.sequence.position
                self.responses.append(("history", since, self.page(Ask(since=since))))
            case "respond" if self.responses:
                self.respond(self.responses.pop(self.rng.randrange(len(self.responses))))
            case "expire":
                self.floor = self.rng.randint(self.floor, self.head)

    def arrive(self, offset: int, *, room_left: bool = True) -> None:
        if offset in self.skipped:
            self.delivered += self.sequence.receive([], [(offset, offset)], room_left=room_left)
        else:
            self.delivered += self.sequence.receive([message(offset)], room_left=room_left)

    def page(self, ask: Ask) -> Page:
        """What the routes respond: a contiguous run behind `since`, or the latest run that there is.

        If the last messages do not fit, it is the first of them, or none.
        """
        if ask.since is None:
            start = max(self.floor, self.head - ask.last)
            end = min(self.head, start + self.rng.choice([0, PAGE_SIZE, ask.last]))
            offsets = range(start + 1, end + 1)
            return Page(offset=end, messages=self.messages(offsets), skipped=self.ranges(offsets), more=end < self.head)
        if ask.since < self.floor:
            offsets = range(max(self.floor, self.head - PAGE_SIZE) + 1, self.head + 1)
            return Page(
                offset=self.head, recovered=False, messages=self.messages(offsets), skipped=self.ranges(offsets)
            )
        end = min(self.head, ask.since + PAGE_SIZE)
        offsets = range(ask.since + 1, end + 1)
        return Page(offset=end, messages=self.messages(offsets), skipped=self.ranges(offsets), more=end < self.head)

    def messages(self, offsets: range) -> list[Message]:
        return [message(each) for each in offsets if each not in self.skipped]

    def ranges(self, offsets: range) -> list[tuple[int, int]]:
        return [(each, each) for each in offsets if each in self.skipped]

    def respond(self, response: tuple[str, Ask | int, Page]) -> None:
        kind, asked, page = response
        if isinstance(asked, Ask):
            if self.began_at is None:
                first = next((each.offset for each in page.messages), None)
                before = page.offset if first is None else first - 1
                self.began_at = before if asked.since is None else asked.since
            self.delivered += self.sequence.joined(asked, page)
        else:
            assert kind == "history"
            self.delivered += self.sequence.filled(asked, page)

    def settle(self) -> None:
        """The connection holds from now on, and nothing is lost any more."""
        self.step("cut")
        self.step("join")
        while self.responses or self.frames or self.sequence.wants():
            if self.responses:
                self.step("respond")
            elif self.frames:
                self.step("frame")
            else:
                self.step("history")


def message(offset: int) -> Message:
    return Message(id=f"m{offset}", room="r", offset=offset, published_at_ms=offset, data="x")


def check(world: World) -> None:
    """Every message after the beginning, once and in order, or with a report where one is missing."""
    assert world.began_at is not None
    position = world.began_at
    excused = set(world.skipped)
    for each in world.delivered:
        if isinstance(each, Recovered):
            if not each.recovered:
                assert each.after is not None
                assert each.before is not None
                excused |= set(range(each.after + 1, each.before))
            continue
        assert each.offset is not None
        assert each.offset > position, "once, and in order"
        missing = set(range(position + 1, each.offset)) - excused
        assert not missing, "without a report"
        position = each.offset
    assert not set(range(position + 1, world.head + 1)) - excused, "at the end"
    assert world.sequence.position == world.head


@pytest.mark.parametrize("max_held", [2, 1_000])
@pytest.mark.parametrize("last", [0, 2, 8])
@given(steps=st.lists(st.sampled_from(STEPS), max_size=60), seed=st.integers(0, 2**32))
def test_each_message_is_delivered_once_and_in_order_or_its_absence_is_reported(
    last: int, max_held: int, steps: list[str], seed: int
) -> None:
    world = World(random.Random(seed), RoomSequence("r", last=last, max_held=max_held))
    for step in steps:
        world.step(step)
    world.settle()
    check(world)


@given(steps=st.lists(st.sampled_from(STEPS), max_size=60), seed=st.integers(0, 2**32))
def test_a_position_of_the_program_is_a_promise_as_well(steps: list[str], seed: int) -> None:
    rng = random.Random(seed)
    head = FIRST + rng.randrange(6)
    world = World(rng, RoomSequence("r", since=rng.randint(FIRST, head)), head=head)
    for step in steps:
        world.step(step)
    world.settle()
    assert world.began_at is not None
    check(world)


@given(steps=st.lists(st.sampled_from([each for each in STEPS if each != "expire"]), max_size=60), seed=st.integers())
def test_nothing_is_reported_as_missing_while_the_history_is_complete(steps: list[str], seed: int) -> None:
    world = World(random.Random(seed), RoomSequence("r"))
    for step in steps:
        world.step(step)
    world.settle()
    check(world)
    assert all(each.recovered for each in world.delivered if isinstance(each, Recovered))


def test_thousands_of_long_runs_at_random() -> None:
    rng = random.Random(1)
    for _ in range(3_000):
        world = World(rng, RoomSequence("r", last=rng.choice([0, 2, 8]), max_held=rng.choice([2, 1_000])))
        for _ in range(rng.randrange(150)):
            world.step(rng.choice(STEPS))
        world.settle()
        check(world)
