"""A client that is cut, joins and resumes sees each message once and in order, or is notified that some are missing.

Messages are appended between any two calls of a request, and each is delivered at once to those who are members at that
moment, as by a worker that reads members as early as it may. The routes are the real ones, up to DynamoDB.
"""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routes import handlers
from routes.requests import Caller
from tests.examples import examples
from tests.route_doubles import Doubles, FakeTable
from tests.routes_events import CONNECTION_ID, LambdaContext, event

ROOM = "news"
SIZES = (1, 500, 40_000, 90_000)
between = st.lists(st.lists(st.sampled_from([*SIZES, *SIZES, 0]), max_size=3), max_size=8)
"""By call: the payloads that are appended before it. A 0 removes the oldest message instead."""
rounds = st.lists(st.tuples(st.lists(st.sampled_from([*SIZES, 0]), max_size=6), between, st.booleans()), max_size=6)


class Memberships(FakeTable):
    """What happens before and after the write of a membership is chosen by the test."""

    happen: Callable[[str], object]

    def join(self, caller: Caller, rooms: Any) -> Any:
        self.happen("join")
        rejected = super().join(caller, rooms)
        self.happen("joined")
        return rejected


class World:
    """The room and one client that follows the rules of docs/reference-clients.md."""

    def __init__(self, doubles: Doubles) -> None:
        self.doubles = doubles
        self.doubles.with_history(ROOM)
        self.sent: list[int] = []
        self.removed = 0
        self.live: list[int] = []
        self.seen: list[int] = []
        self.position = 0
        self.notified = 0
        self.waiting: list[list[int]] = []

    def happen(self, _call: str) -> None:
        for size in self.waiting.pop(0) if self.waiting else ():
            self.publish(size)

    def publish(self, size: int) -> None:
        if not size:
            if self.removed < len(self.sent):
                self.doubles.stream.delete(ROOM, self.sent[self.removed])
                self.removed += 1
            return
        offset = self.doubles.stream.append(ROOM, "x" * size)
        self.sent.append(offset)
        if ROOM in self.doubles.memberships.rooms.get(CONNECTION_ID, ()):
            self.live.append(offset)

    def request(self, **fields: Any) -> dict[str, Any]:
        handler = getattr(handlers, fields["action"])
        response: dict[str, Any] = json.loads(handler(event(body=json.dumps(fields)), LambdaContext())["body"])
        assert response["type"] == "ok", response
        return response

    def resume(self, *, as_list: bool) -> None:
        """Joins and reads until there is no more. Live messages that arrive meanwhile are kept, and sorted in after."""
        position = {"since": self.position} if self.position else {}
        if as_list:
            page = self.request(action="join", rooms=[{"room": ROOM, **position}, {"room": "other"}])["rooms"][0]
        else:
            page = self.request(action="join", room=ROOM, **position)
        first = not self.position
        while True:
            if not page["recovered"] and not (page["more"] and page["offset"] == self.position):
                self.notified += 1
                self.position = page["offset"] - len(page["messages"])
            for message in page["messages"]:
                self.take(message["offset"])
            if first:
                self.position, first = page["offset"], False
            assert page["offset"] == self.position
            if not page["more"]:
                break
            page = self.request(action="history", room=ROOM, since=self.position)
        self.drain()

    def drain(self) -> None:
        for offset in sorted(self.live):
            if offset > self.position:
                self.take(offset)
        self.live.clear()

    def take(self, offset: int) -> None:
        assert offset == self.position + 1, "no gap, and no repeat"
        self.seen.append(offset)
        self.position = offset

    def cut(self) -> None:
        self.drain()
        self.doubles.memberships.rooms.clear()


@settings(max_examples=examples(300), deadline=None)
@given(rounds)
def test_nothing_is_lost_at_the_seam(rounds: list[tuple[list[int], list[list[int]], bool]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        memberships = Memberships()
        doubles = Doubles(memberships=memberships)
        world = World(doubles)
        memberships.happen = doubles.stream.on_call = world.happen
        doubles.install(patch)
        patch.setenv("POWERTOOLS_METRICS_DISABLED", "true")
        world.resume(as_list=False)
        start = world.position
        for away, during, as_list in rounds:
            world.cut()
            for size in away:
                world.publish(size)
            world.waiting = [list(each) for each in during]
            world.resume(as_list=as_list)
            world.waiting = []
            assert world.position == max(world.sent, default=start), "the client is up to date"
        missed = [offset for offset in world.sent if offset > start and offset not in world.seen]
        assert bool(world.notified) or not missed
        assert set(missed) <= set(world.sent[: world.removed]) or world.notified
        assert world.seen == sorted(set(world.seen))


def test_the_client_of_this_test_notices_what_it_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    doubles = Doubles().install(monkeypatch)
    world = World(doubles)
    world.resume(as_list=False)
    world.live = [world.position + 2]
    with pytest.raises(AssertionError, match="no gap"):
        world.drain()
