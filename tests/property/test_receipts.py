"""Every broadcast with a receipt ends in one or more, all equal, and true to what became of its members.

The real worker in virtual time (`tests.simulation`), killed at each of its calls in turn, or at random.
"""

import asyncio
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gatecast import Broadcast, decode
from gatecast import table as keys
from gatecast.frames import V2
from gatecast.presence import joined_broadcast
from gatecast.receipt import Receipt
from tests.simulation import EPOCH, SimulatedWorker, World, apply_plan, run, until_empty

TO_ROOM = Broadcast(id="one", room="room", data="x", receipt=True)
GONE, STUCK, FLAKY = "gone", "stuck", "flaky"
"""Members whose ids begin like this do not get the broadcast, or not at once."""
NOT_COUNTED = ("receive", "count", "delete_batch", "joined_rooms", "change_visibility")
"""Calls that look for messages, remove gone connections, or extend leases."""


def crowd(*, plain: int = 0, gone: int = 0, stuck: int = 0, flaky: int = 0) -> list[str]:
    counts = {"plain": plain, GONE: gone, STUCK: stuck, FLAKY: flaky}
    return [f"{kind}{number:04}=" for kind, count in counts.items() for number in range(count)]


def respond(connection_id: str, nth: int) -> int | None:
    if connection_id.startswith(GONE):
        return 410
    if connection_id.startswith(STUCK):
        return 429
    return 503 if connection_id.startswith(FLAKY) and nth == 1 else 200


def make_world(members: list[str], *, shards: int = 1, **settings: object) -> World:
    world = World({}, respond=respond, rng=random.Random(1), latency=lambda: 0.05, **settings)  # type: ignore[arg-type]
    for shard in range(shards):
        world.add_members("room", members[shard::shards], shard=shard)
    if shards > 1:
        world.set_shards("room", shards)
    world.broken.add("deletions")  # a gone member that has been removed is none any more when pages are read again
    return world


def set_receipt(world: World, name: str, *, receipt: bool) -> None:
    world.table.put({**keys.key(keys.settings_pk(name), keys.SETTINGS_SK), "receipt": {"BOOL": receipt}})


class Killer:
    """Starts workers, and kills the one that makes the call of this number, before it takes effect."""

    def __init__(self, at: int | None = None) -> None:
        self.calls: list[str] = []
        self._at = at
        self._workers: list[SimulatedWorker] = []
        self._replacing: asyncio.Task[None] | None = None

    async def on_call(self, worker: SimulatedWorker, call: str) -> None:
        if call.partition(" ")[2] in NOT_COUNTED:
            return
        self.calls.append(call)
        if len(self.calls) - 1 == self._at:
            self._replacing = asyncio.create_task(self._replace(worker))
            await asyncio.Event().wait()

    def start(self, world: World) -> None:
        # a client that does not read would be gone after a kill, if it had been closed
        self._workers.append(SimulatedWorker(world, slow_clients="keep"))

    async def terminate(self) -> None:
        for worker in self._workers:
            await worker.terminate()

    async def _replace(self, worker: SimulatedWorker) -> None:
        self._workers.remove(worker)
        await worker.kill()
        self.start(worker.world)


def play(world: World, *broadcasts: Broadcast, killer: Killer | None = None) -> None:
    """Deliver the broadcasts, until the queue is empty."""
    killer = killer or Killer()
    world.on_call = killer.on_call

    async def simulation() -> None:
        for broadcast in broadcasts or (TO_ROOM,):
            world.publish(broadcast)
        killer.start(world)
        await until_empty(world)
        await killer.terminate()

    run(simulation())


def the_receipt(world: World) -> Receipt:
    """The one that was sent, or one of those that were, which are equal."""
    assert len(set(world.receipts)) == 1, world.receipts
    return world.receipts[0]


def check(world: World, members: list[str], *, posts: bool = True) -> None:
    """The receipt says what became of these members. After a kill some posts are not counted."""
    receipt = the_receipt(world)
    gone, stuck = (sum(each.startswith(kind) for each in members) for kind in (GONE, STUCK))
    outcomes = (receipt.delivered, receipt.gone, receipt.undelivered)
    assert outcomes == (len(members) - gone - stuck, gone, stuck)
    assert (receipt.id, receipt.room, receipt.members) == ("one", "room", len(members))
    assert receipt.billed_units == receipt.delivered
    assert receipt.posts == world.posts.total() if posts else receipt.posts <= world.posts.total()
    assert {each for each, times in world.delivered.items() if times} == {
        each for each in members if not each.startswith((GONE, STUCK))
    }


def test_an_ordinary_broadcast_needs_one_more_write_and_one_message() -> None:
    members, killer = crowd(plain=20, gone=2, flaky=2), Killer()
    world = make_world(members)
    play(world, killer=killer)
    check(world, members)
    assert len(world.receipts) == 1
    assert "receipts end" not in killer.calls
    without = Killer()
    play(make_world(members), replace(TO_ROOM, receipt=False), killer=without)
    assert len(killer.calls) == len(without.calls) + 2
    assert killer.calls[-4:] == [
        "progress write_checkpoint",
        "receipts_queue send",
        "queue delete",
        "progress complete",
    ]


@pytest.mark.parametrize(
    ("shards", "members"),
    [(1, crowd(plain=20, gone=2, flaky=2)), (1, []), (2, crowd(plain=20, gone=2, flaky=2))],
    ids=["whole", "empty", "split"],
)
def test_a_kill_at_any_call_changes_no_receipt(shards: int, members: list[str]) -> None:
    world, undisturbed = make_world(members, shards=shards), Killer()
    play(world, killer=undisturbed)
    check(world, members)
    for at in range(len(undisturbed.calls)):
        world = make_world(members, shards=shards)
        play(world, killer=Killer(at))
        check(world, members, posts=False)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_kill_while_remainders_leave_changes_no_receipt(monkeypatch: pytest.MonkeyPatch, shards: int) -> None:
    for module in ("worker.pipeline.remainders", "worker.delivery.fanout"):
        monkeypatch.setattr(f"{module}.MAX_WAITING", 2)
    members = crowd(plain=7)
    slow = members[:3]

    def play_slow(killer: Killer) -> World:
        world = make_world(members, shards=shards)
        world.respond = lambda each, _nth: 429 if each in slow and world.now() < 20 else 200
        play(world, killer=killer)
        return world

    undisturbed = Killer()
    check(play_slow(undisturbed), members)
    assert undisturbed.calls.count("receipts expect") > 1
    for at in range(undisturbed.calls.index("receipts expect") - 1, len(undisturbed.calls)):
        check(play_slow(Killer(at)), members, posts=False)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    members=st.builds(
        crowd, plain=st.integers(0, 1_500), gone=st.integers(0, 5), flaky=st.integers(0, 40), stuck=st.integers(0, 3)
    ),
    shards=st.sampled_from([1, 1, 3]),
    plan=st.lists(
        st.tuples(
            st.floats(0, 2),
            st.sampled_from(
                ["kill", "kill", "terminate", "second worker", "handed out again", "moved back", "table", "receipts"]
            ),
        ),
        max_size=6,
    ),
)
def test_under_any_faults_receipts_are_equal_and_true(
    members: list[str], shards: int, plan: list[tuple[float, str]]
) -> None:
    world = make_world(members, shards=shards)
    world.close_status = lambda _: 500  # so that none is gone

    async def simulation() -> None:
        world.publish(TO_ROOM)
        workers = await apply_plan(world, plan)
        world.broken.add("deletions")
        await until_empty(world)
        for worker in workers:
            await worker.terminate()

    run(simulation())
    check(world, members, posts=False)


def test_members_that_the_broadcast_excludes_do_not_count() -> None:
    world = make_world(crowd(plain=3))
    world.add_members("room", ["v2-a=", "v2-b="], frames=V2)
    world.set("room", history_seconds=60)
    play(world, replace(TO_ROOM, except_=("plain0000=", "v2-a=")))
    receipt = the_receipt(world)
    assert (receipt.members, receipt.delivered) == (3, 3)
    assert receipt.posts == receipt.billed_units == 4, "one of them is posted the offset without the message"


@pytest.mark.parametrize(("size", "units"), [(32_768, 2), (32_769, 4), (131_072, 8)])
def test_billed_units_are_32_kb_of_what_was_delivered(size: int, units: int) -> None:
    world = make_world(crowd(plain=2, flaky=0, gone=1))
    play(world, replace(TO_ROOM, data="x" * size))
    assert the_receipt(world).billed_units == units


def test_a_broadcast_to_connections_has_no_room() -> None:
    world = make_world([])
    world.add_connections(["a=", "b="])
    play(world, Broadcast(id="one", connections=("a=", "b=", "a="), data="x", receipt=True))
    receipt = the_receipt(world)
    assert (receipt.room, receipt.members, receipt.delivered) == (None, 2, 2)


@pytest.mark.parametrize(
    ("broadcast", "expected"),
    [
        (Broadcast(id="one", room="chat/a", data="x"), 1),
        (Broadcast(id="one", room="chat/a", data="x", receipt=False), 0),
        (Broadcast(id="one", room="chat/quiet", data="x"), 0),
        (Broadcast(id="one", room="chat/quiet", data="x", receipt=True), 1),
        (Broadcast(id="one", room="other", data="x"), 0),
        (joined_broadcast("chat/a", "ann", unique="1", published_at_ms=int(EPOCH * 1000)), 0),
    ],
    ids=["namespace", "not this one", "room over namespace", "this one", "no setting", "presence"],
)
def test_the_setting_of_the_room_decides_unless_the_broadcast_does(broadcast: Broadcast, expected: int) -> None:
    world = make_world([])
    world.add_members(str(broadcast.room), ["a="])
    set_receipt(world, "chat/*", receipt=True)
    set_receipt(world, "chat/quiet", receipt=False)
    play(world, broadcast)
    assert len(world.receipts) == expected


def test_without_a_receipts_queue_there_are_none() -> None:
    world = make_world(crowd(plain=2), with_receipts=False)
    play(world)
    assert not world.receipts
    assert set(world.delivered) == set(crowd(plain=2))


@pytest.mark.parametrize("shards", [1, 2])
def test_a_broadcast_that_expires_before_it_begins_has_reached_nobody(shards: int) -> None:
    world = make_world(crowd(plain=5), shards=shards)
    play(world, replace(TO_ROOM, published_at_ms=int(EPOCH * 1000) - 9_000, expires_at_ms=int(EPOCH * 1000) - 5_000))
    receipt = the_receipt(world)
    assert (receipt.members, receipt.expired, receipt.posts) == (0, 0, 0)
    assert receipt.seconds >= 9
    assert not world.delivered


def test_members_whose_turn_comes_too_late_count_as_expired() -> None:
    world = make_world(crowd(plain=3, stuck=2))
    play(world, replace(TO_ROOM, expires_at_ms=int(EPOCH * 1000) + 10_000))
    receipt = the_receipt(world)
    assert (receipt.members, receipt.delivered, receipt.expired) == (5, 3, 2)


def test_a_remainder_that_expires_before_it_begins_counts_its_members(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("worker.pipeline.remainders", "worker.delivery.fanout"):
        monkeypatch.setattr(f"{module}.MAX_WAITING", 2)
    world = make_world(crowd(plain=3, stuck=2))
    play(world, replace(TO_ROOM, expires_at_ms=int(EPOCH * 1000) + 15_000))
    receipt = the_receipt(world)
    assert (receipt.members, receipt.delivered, receipt.expired) == (5, 3, 2)
    assert world.shared_receipts


def test_a_remainder_that_the_queue_rejects_is_counted_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("worker.pipeline.remainders", "worker.delivery.fanout"):
        monkeypatch.setattr(f"{module}.MAX_WAITING", 2)
    members = crowd(plain=3, stuck=2)
    world = make_world(members)
    world.queue._rejects = lambda: bool(world.delivered)
    play(world)
    check(world, members)


def test_a_broadcast_that_is_given_up_ends_in_a_receipt_when_it_is_sent_again() -> None:
    members = crowd(plain=3, flaky=2)
    world = make_world(members)

    async def simulation() -> None:
        world.publish(TO_ROOM)
        world.messages[0].receive_count = 200
        worker = SimulatedWorker(world)
        await until_empty(world)
        assert not world.receipts
        [letter] = world.dead_letters
        world.publish(decode(letter.body))
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    check(world, members)


@pytest.mark.parametrize("shards", [1, 3])
def test_while_the_receipts_queue_fails_a_worker_stops_at_once_and_the_next_one_sends_the_receipt(shards: int) -> None:
    members = crowd(plain=6)
    world = make_world(members, shards=shards)
    world.broken.add("receipts")

    async def simulation() -> None:
        world.publish(TO_ROOM)
        worker = SimulatedWorker(world)
        await asyncio.sleep(600)
        assert sum(world.delivered.values()) == len(members)
        began_at = world.now()
        await worker.terminate()
        assert world.now() - began_at < 5
        assert world.messages, "it is not acknowledged"
        world.broken.clear()
        worker = SimulatedWorker(world)
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    check(world, members)


def test_a_dead_letter_of_missed_members_ends_in_no_receipt() -> None:
    world = make_world(crowd(plain=3, stuck=1))

    async def simulation() -> None:
        world.publish(TO_ROOM)
        worker = SimulatedWorker(world, slow_clients="keep")
        await until_empty(world)
        [letter] = world.dead_letters
        world.respond = lambda _id, _nth: 200
        await asyncio.sleep(900)  # until the worker has forgotten that the client did not read
        world.publish(decode(letter.body))
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    assert world.delivered.total() == 4
    assert len(world.receipts) == 1


def test_a_part_that_a_program_publishes_ends_in_no_receipt() -> None:
    """Nobody expects it, so its receipt could never be complete."""
    world = make_world(crowd(plain=3))
    play(world, replace(TO_ROOM, part="mine", shard=0))
    assert world.delivered.total() == 3
    assert not world.receipts


def test_while_the_receipts_queue_fails_broadcasts_wait() -> None:
    members = crowd(plain=3)
    world = make_world(members)

    async def simulation() -> None:
        world.broken.add("receipts")
        world.publish(TO_ROOM)
        worker = SimulatedWorker(world)
        await asyncio.sleep(100)
        assert world.messages
        assert "receipts" in worker.health.problems
        world.broken.discard("receipts")
        await until_empty(world)
        await worker.terminate()

    run(simulation())
    check(world, members)
    assert the_receipt(world).seconds < 5, "the time is that of the deliveries"


def test_on_a_fifo_queue_equal_receipts_are_one() -> None:
    members = crowd(plain=3, stuck=2)
    world = make_world(members, fifo=True, shards=2)
    play(world)
    check(world, members)


def test_a_split_that_is_repeated_with_more_shards_counts_them_all() -> None:
    """The worker dies after it has sent the parts; before another one repeats that, the room gets a third shard."""
    members = crowd(plain=9)
    undisturbed = Killer()
    play(make_world(members, shards=2), killer=undisturbed)
    world = make_world(members[:6], shards=2)
    killer = Killer(undisturbed.calls.index("queue send") + 1)

    async def on_call(worker: SimulatedWorker, call: str) -> None:
        if len(killer.calls) == undisturbed.calls.index("queue send") + 1 and not world.current_members("room", 2):
            world.add_members("room", members[6:], shard=2)
            world.set_shards("room", 3)
        await killer.on_call(worker, call)

    world.on_call = on_call

    async def simulation() -> None:
        world.publish(TO_ROOM)
        killer.start(world)
        await until_empty(world)
        await killer.terminate()

    run(simulation())
    check(world, members, posts=False)


def test_an_id_that_is_used_again_a_day_later_has_a_receipt_of_its_own() -> None:
    members = crowd(plain=4)
    world = make_world(members, shards=2)

    async def simulation() -> None:
        for _ in range(2):
            world.publish(TO_ROOM)
            worker = SimulatedWorker(world)
            await asyncio.sleep(60)
            await worker.terminate()
            await asyncio.sleep(25 * 3600)

    run(simulation())
    assert [receipt.members for receipt in world.receipts] == [4, 4]
    assert world.delivered == dict.fromkeys(members, 2)
