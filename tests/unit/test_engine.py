"""The delivery engine on a fake pool: turns, limits, retries, expiry and errors. In virtual time."""

import asyncio
from collections import Counter

import pytest

from gatecast import Broadcast
from gatecast.frames import V1, V2
from tests.engine_doubles import EngineFixture, run_engine
from tests.pipeline_doubles import ids, now
from tests.simulation import EPOCH, run
from worker.decisions.outcome import Outcome
from worker.delivery.errands import Closing
from worker.ports import Member
from worker.transport.signing import Credentials

PUBLISHED_AT_MS = 1_700_000_000_000


def test_every_member_is_posted_to_once_with_the_payload() -> None:
    async def script(fixture: EngineFixture) -> None:
        fanout = fixture.offer("room", *ids(900))
        await asyncio.sleep(10)
        assert fanout.settled
        assert fanout.in_flight == 0

    found = run_engine(script)
    assert found.pool.posts == [(connection_id, "room") for connection_id in ids(900)]
    assert found.metrics.deliveries[Outcome.DELIVERED] == 900


def test_members_of_both_dialects_are_posted_their_bodies_and_retries_are_the_same() -> None:
    dialects = dict(zip(ids(4), (V1, V2, V2, V1), strict=True))
    excluded = ("c0002=", "c0003=")

    async def script(fixture: EngineFixture) -> None:
        broadcast = Broadcast(
            id="one", room="room", data="x", offset=7, except_=excluded, published_at_ms=PUBLISHED_AT_MS
        )
        fanout = fixture.fanout(broadcast)
        fanout.add_page([Member(each, 0, frames) for each, frames in dialects.items()], last=True)
        fixture.engine.offer(fanout)
        await asyncio.sleep(30)
        assert fanout.settled

    found = run_engine(script, lambda: EngineFixture(lambda _id, nth: 503 if nth == 1 else 200))
    message = f'{{"id":"one","offset":7,"published_at_ms":{PUBLISHED_AT_MS},"data":"x"}}'
    frame = f'{{"type":"messages","room":"room","messages":[{message}]}}'
    skipping = '{"type":"messages","room":"room","messages":[],"skipped":[[7,7]]}'
    assert sorted(found.pool.posts) == [("c0000=", "x")] * 2 + [("c0001=", frame)] * 2 + [("c0002=", skipping)] * 2


def test_rooms_take_turns_even_if_one_of_them_is_large() -> None:
    async def script(fixture: EngineFixture) -> None:
        fixture.offer("large", *ids(500))
        fixture.offer("small", *ids(5))
        await asyncio.sleep(10)

    found = run_engine(script, lambda: EngineFixture(size=1))
    assert [name for _, name in found.pool.posts[:10]] == ["large", "small"] * 5


def test_no_more_posts_are_in_flight_than_there_are_connections() -> None:
    async def script(fixture: EngineFixture) -> None:
        fixture.offer("room", *ids(200))
        await asyncio.sleep(10)

    found = run_engine(script, lambda: EngineFixture(size=3))
    assert found.pool.max_in_flight == 3
    assert len(found.pool.posts) == 200


def test_posts_stay_within_the_rate_limit() -> None:
    async def script(fixture: EngineFixture) -> None:
        fixture.offer("room", *ids(900))
        await asyncio.sleep(5)

    found = run_engine(script, lambda: EngineFixture(size=100, posts_per_second=100))
    assert 400 <= len(found.pool.posts) <= 510


def test_an_expired_broadcast_is_not_posted() -> None:
    async def script(fixture: EngineFixture) -> None:
        fanout = fixture.offer("room", *ids(5), expires_at_ms=int(EPOCH * 1000))
        await asyncio.sleep(1)
        assert fanout.settled
        assert fanout.counts[Outcome.EXPIRED] == 5

    assert not run_engine(script).pool.posts


def test_a_stopped_broadcast_is_not_posted_any_further() -> None:
    async def script(fixture: EngineFixture) -> None:
        fanout = fixture.offer("room", *ids(500))
        await asyncio.sleep(0.1)
        fanout.stop()
        posts = len(fixture.pool.posts)
        await asyncio.sleep(10)
        assert 0 < len(fixture.pool.posts) == posts < 500
        assert len(fanout.checkpoint().pending) == 0, "every response has arrived"

    run_engine(script, lambda: EngineFixture(size=2))


@pytest.mark.parametrize("first", [None, 503, 429])
def test_a_failed_post_is_retried(first: int | None) -> None:
    async def script(fixture: EngineFixture) -> None:
        fanout = fixture.offer("room", *ids(20))
        await asyncio.sleep(60)
        assert fanout.settled
        assert fanout.counts[Outcome.DELIVERED] == 20

    found = run_engine(script, lambda: EngineFixture(lambda name, nth: first if name == "c0007=" and nth == 1 else 200))
    assert Counter(name for name, _ in found.pool.posts) == {name: 1 + (name == "c0007=") for name in ids(20)}


def test_a_rejected_member_is_missed_while_others_succeed() -> None:
    async def script(fixture: EngineFixture) -> None:
        fanout = fixture.offer("room", *ids(20))
        await asyncio.sleep(60)
        assert fanout.finished
        assert [(delivery.connection_id, outcome) for delivery, outcome in fanout.missed] == [
            ("c0007=", Outcome.REJECTED)
        ]

    run_engine(script, lambda: EngineFixture(lambda name, _nth: 403 if name == "c0007=" else 200))


def test_a_410_without_a_known_age_waits_until_the_age_is_looked_up() -> None:
    async def script(fixture: EngineFixture) -> None:
        fanout = fixture.offer("room", *ids(1), joined_at_ms=None)
        await asyncio.sleep(30)
        [delivery] = fanout.unknown_age
        assert not fanout.settled
        delivery.joined_at_ms = 0
        fixture.engine.decide_gone(delivery)
        assert fanout.settled
        assert fixture.gone == ids(1)

    assert len(run_engine(script, lambda: EngineFixture(lambda _id, _nth: 410)).pool.posts) == 1


def test_a_request_on_a_dead_connection_is_signed_again_for_the_same_member() -> None:
    async def script(fixture: EngineFixture) -> None:
        fanout = fixture.offer("room", "a/b=")
        delivery = fanout.take()
        assert delivery is not None
        assert fixture.pool.handler is not None
        request = fixture.pool.handler.retry_request(delivery, now())
        assert request is not None
        assert request.startswith(b"POST /live/@connections/a%2Fb%3D HTTP/1.1\r\n")
        assert request.endswith(b"\r\n\r\nroom")

    run_engine(script)


def test_without_credentials_nothing_is_posted_and_the_problem_is_reported() -> None:
    async def script(fixture: EngineFixture) -> None:
        fanout = fixture.offer("room", *ids(5))
        await asyncio.sleep(5)
        assert fixture.engine.problem() == "no credentials"
        assert not fixture.pool.posts
        fixture.signer.use(Credentials("a", "b"))
        await asyncio.sleep(5)
        assert fixture.engine.problem() is None
        assert fanout.settled

    run_engine(script, lambda: EngineFixture(credentials=False))


def test_an_error_in_a_tick_ends_the_engine() -> None:
    async def simulation() -> None:
        fixture = EngineFixture()
        fixture.pool.broken = True
        with pytest.raises(OSError, match="broken"):
            await asyncio.wait_for(fixture.engine.run(), 10)

    run(simulation())


def test_connections_are_closed_at_once_by_an_idle_engine_and_beside_deliveries() -> None:
    ended: list[tuple[str, float]] = []

    async def script(fixture: EngineFixture) -> None:
        def close(name: str, *more: str) -> None:
            """Close one after the other, each from the end of the one before."""

            def on_end(_status: int, at: float, _failure: object) -> None:
                ended.append((name, at))
                if more:
                    close(*more)

            fixture.engine.close(Closing(name, on_end, paced=True))

        await asyncio.sleep(1)
        began_at = now()
        close("a=", "b=", "c=")
        await asyncio.sleep(0.5)
        assert [name for name, _ in ended] == ["a=", "b=", "c="]
        assert ended[-1][1] - began_at < 0.1
        polls = fixture.pool.polls
        await asyncio.sleep(10)
        assert fixture.pool.polls - polls <= 110, "an engine that is idle again ticks ten times per second"
        fanout = fixture.offer("room", *ids(500))
        close(*ids(20))
        await asyncio.sleep(2)
        assert fanout.settled
        assert len(ended) == 23

    run_engine(script)
