"""Broadcasts whose payload is an object in S3: what is delivered, and what is given up instead. In virtual time."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from gatecast import Broadcast, decode
from gatecast.broadcast import Close, Reference
from gatecast.frames import V1, V2, Link
from gatecast.references import NEW_LINK_SECONDS
from tests.memory_payloads import reference_to
from tests.pipeline_doubles import claim, ids, lease, now, place, reasons
from tests.simulation import EPOCH
from tests.unit.test_broadcaster import BroadcasterFixture
from tests.unit.test_run import RunFixture
from worker.delivery.bodies import Bodies
from worker.pipeline.broadcaster import Broadcaster, Ending
from worker.pipeline.lease import LeaseState
from worker.pipeline.payloads import Payloads, Undeliverable
from worker.pipeline.run import Run
from worker.ports import DependencyError, NoObject

LARGE = Broadcast(id="one", room="room", reference=reference_to("a", 5), published_at_ms=int(EPOCH * 1000))


def fixture_with(*objects: tuple[str, int], **options: Any) -> BroadcasterFixture:
    fixture = BroadcasterFixture(claim(), **options)
    fixture.pipeline.payloads.lengths = dict(objects)
    return fixture


def link(number: int = 1) -> Link:
    return Link(url=f"https://s3/{number}", bytes=5, content_type="text/plain", expires_at_ms=1_700_003_600_000)


# What members receive


def test_both_dialects_receive_a_link_and_never_where_the_object_is() -> None:
    bodies = Bodies(LARGE, link=link())
    fields = {"url": "https://s3/1", "bytes": 5, "content_type": "text/plain", "expires_at_ms": 1_700_003_600_000}
    assert json.loads(bodies.body(V1).payload) == {"type": "reference", **fields}
    [message] = json.loads(bodies.body(V2).payload)["messages"]
    assert message == {"id": "one", "published_at_ms": LARGE.published_at_ms, "reference": fields}


def test_a_new_link_replaces_the_one_in_deliveries_that_have_begun() -> None:
    bodies = Bodies(LARGE, link=link())
    begun = bodies.body(V1)
    begun.prepared_for = (1_700_000_000, 1)
    bodies.renew_link(link(2))
    assert json.loads(begun.payload)["url"] == "https://s3/2"
    assert begun.prepared_for != (1_700_000_000, 1), "the request is prepared again"
    assert bodies.body(V1) is begun
    assert json.loads(bodies.body(V2).payload)["messages"][0]["reference"]["url"] == "https://s3/2"


# From claim to ending


def test_one_check_and_one_link_serve_all_members() -> None:
    fixture = fixture_with(("a", 5), members=250)
    assert fixture.end(LARGE) is Ending.COMPLETED
    assert len(fixture.pipeline.payloads.links) == 1
    assert not fixture.dead_letters.sent


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        (reference_to("other", 5), "missing_object: NoSuchKey"),
        (reference_to("empty", 5), "missing_object: InvalidRange"),
        (
            reference_to("a", 5, bucket="someone-elses"),
            "foreign_bucket: it is not the one that GATECAST_PAYLOAD_BUCKET",
        ),
    ],
)
def test_what_cannot_be_delivered_is_given_up_before_anything_is_written_or_posted(
    reference: Reference, reason: str
) -> None:
    fixture = fixture_with(("a", 5), ("empty", 0), history_seconds=60)
    large = Broadcast(id="one", room="room", reference=reference, published_at_ms=int(EPOCH * 1000))
    assert fixture.end(large) is Ending.GIVEN_UP
    [stored] = reasons(fixture.dead_letters)
    assert stored.startswith(reason)
    assert decode(fixture.dead_letters.sent[0]["MessageBody"]) == large
    assert not fixture.stream.appends
    assert fixture.progress.released == 1, "it can be claimed when it is redriven, or published again"
    assert fixture.pipeline.metrics.dead_letters[reason.partition(":")[0]] == 1


def test_without_a_dead_letter_queue_it_is_logged() -> None:
    fixture = fixture_with(dead_letters=False)
    with capture_logs() as logged:
        assert fixture.end(LARGE) is Ending.GIVEN_UP
    [event] = [each for each in logged if each["event"] == "broadcast.given_up"]
    assert (event["id"], event["reason"], event["why"]) == ("one", "missing_object", "NoSuchKey")
    assert fixture.pipeline.metrics.dead_letters["missing_object"] == 1


@pytest.mark.parametrize(("dead_letters", "expected"), [(True, Ending.GIVEN_UP), (False, Ending.DEFERRED)])
@pytest.mark.parametrize(
    ("cause", "reason"),
    [("no bucket", ("no_bucket", "set GATECAST_PAYLOAD_BUCKET to the bucket of payloads")),
     ("AccessDenied", ("missing_object", "AccessDenied"))],
)  # fmt: skip
def test_what_a_setting_or_a_permission_may_make_readable_is_never_lost(
    cause: str, reason: tuple[str, str], expected: Ending, *, dead_letters: bool
) -> None:
    """Without a dead-letter queue it stays on the queue, and holds no place."""
    fixture = fixture_with(dead_letters=dead_letters, history_seconds=60)
    pipeline = fixture.pipeline

    async def denied(component: str, operation: str) -> None:
        del component, operation
        raise NoObject(cause)

    if cause == "no bucket":
        pipeline.services = replace(pipeline.services, payloads=Payloads(None, pipeline.health))
    else:
        pipeline.payloads._before_call = denied
    with capture_logs() as logged:
        assert fixture.end(LARGE) is expected
    event = logged[-1]
    assert event["event"] == ("broadcast.given_up" if dead_letters else "broadcast.deferred")
    assert (event["id"], event["reason"], event["why"]) == ("one", *reason)
    assert len(fixture.dead_letters.sent) == dead_letters
    assert pipeline.metrics.dead_letters[reason[0]] == dead_letters
    assert not fixture.stream.appends
    assert not fixture.completions.added


async def test_without_a_bucket_the_reason_says_what_to_set() -> None:
    with pytest.raises(Undeliverable, match="no_bucket: set GATECAST_PAYLOAD_BUCKET"):
        await Payloads(None, fixture_with().pipeline.health).find(LARGE, lease())


async def test_other_broadcasts_need_no_bucket() -> None:
    payloads = Payloads(None, fixture_with().pipeline.health)
    for broadcast in (
        Broadcast(id="one", room="room", data="x"),
        Broadcast(id="one", room="room", v=2, close=Close(code="bye", retry=False)),
    ):
        assert await payloads.find(broadcast, lease()) is broadcast
        assert not await payloads.link(broadcast)


def test_while_s3_fails_the_broadcast_waits() -> None:
    fixture = fixture_with(("a", 5))
    payloads, failures = fixture.pipeline.payloads, iter(["SlowDown", "ServiceUnavailable"])

    async def failing(component: str, operation: str) -> None:
        del component, operation
        if (code := next(failures, None)) is not None:
            raise DependencyError(code)

    payloads._before_call = failing
    assert fixture.end(LARGE) is Ending.COMPLETED
    assert fixture.pipeline.health.failures["payloads"] == 2
    assert not fixture.dead_letters.sent


@pytest.mark.parametrize(
    ("state", "expected"), [(LeaseState.ENDING, Ending.RELEASED), (LeaseState.LOST, Ending.ABANDONED)]
)
def test_while_s3_fails_the_broadcast_stops_with_its_lease(state: LeaseState, expected: Ending) -> None:
    fixture, held = fixture_with(("a", 5), history_seconds=60), lease()

    async def failing(component: str, operation: str) -> None:
        del component, operation
        raise DependencyError("SlowDown")

    async def script(broadcaster: Broadcaster) -> Ending:
        running = asyncio.create_task(broadcaster.run(LARGE, held, place()))
        await asyncio.sleep(3_600)
        assert not running.done()
        held.transition(state)
        stopped_at = now()
        ending = await running
        assert now() == stopped_at
        return ending

    fixture.pipeline.payloads._before_call = failing
    assert fixture.run_script(script) is expected
    assert held.on_change is None
    assert not fixture.stream.appends


def test_the_real_length_reaches_clients_and_the_history() -> None:
    fixture = fixture_with(("a", 1_234_567), history_seconds=60)
    assert fixture.end(LARGE) is Ending.COMPLETED
    [entry] = fixture.stream.appends[0].entries
    assert entry.item["reference"] == {
        "M": {
            "bucket": {"S": fixture.pipeline.payloads.bucket},
            "key": {"S": "a"},
            "bytes": {"N": "1234567"},
            "content_type": {"S": "text/plain; charset=utf-8"},
        }
    }
    assert fixture.pipeline.payloads.links[0].bytes == 1_234_567


def test_parts_of_a_large_room_refer_to_the_same_object() -> None:
    fixture = fixture_with(("a", 7), shards=3)
    assert fixture.end(LARGE) is Ending.SPLIT
    parts = [decode(entry["MessageBody"]) for entry in fixture.pipeline.queue.sent]
    assert [part.reference for part in parts] == [reference_to("a", 7)] * 3
    assert not fixture.pipeline.payloads.links


# Links end


def test_a_delivery_that_takes_long_posts_new_links() -> None:
    first = Link(url="https://s3/first", bytes=5, content_type="text/plain", expires_at_ms=1)
    fixture = RunFixture(2, broadcast=LARGE, link=first)
    urls: list[str] = []

    async def script(run_: Run) -> None:
        waiting = fixture.engine.in_flight["c0000="]
        fixture.engine.fail("c0000=", 1)
        for _ in range(3):
            urls.append(json.loads(waiting.body.payload)["url"])
            await asyncio.sleep(NEW_LINK_SECONDS)
        run_.fanout.stop_waiting(waiting)
        fixture.engine.in_flight["c0000="] = waiting
        run_.fanout.in_flight += 1
        for each in ids(2):
            fixture.engine.deliver(each)

    fixture.play(script)
    assert fixture.settled
    assert urls == ["https://s3/first", *(each.url for each in fixture.pipeline.payloads.links[:2])]
