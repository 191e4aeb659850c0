"""The client against the emulator with the real routes, ministack and a worker."""

import asyncio
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import jwt
import msgspec
import pytest

from gatecast import client
from gatecast.client import Client, Message, Options, Recovered, Room
from local import token
from local.backend import prepare_backend
from local.gateway_process import GatewayProcess
from local.ministack import SERVICES, Ministack
from local.resources import write_room_settings
from local.route_table import AUTHORIZER
from local.stack import Stack
from local.worker_process import WorkerProcess
from routes import authorizer
from tests.gateway_doubles import until

QUICK = Options(gap_seconds=2, backoff_seconds=0.05, max_backoff_seconds=0.5, overlap_seconds=0.2)
HISTORY = {"history_seconds": 600, "presence": 100}
SECRET = "a secret of this test, long enough for HS256"


@pytest.fixture(scope="module")
def ministack() -> Iterator[Ministack]:
    with Ministack.start(services=(*SERVICES, "secretsmanager")) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(ministack: Ministack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """Without an authorizer; every room has history and presence. A worker runs beside it."""
    name, logs = f"client-{uuid.uuid4().hex[:8]}", tmp_path_factory.mktemp("client")
    base = prepare_backend(ministack, table=name, queue=name)
    with base.client("dynamodb") as dynamodb:
        write_room_settings(dynamodb, base.table, HISTORY)
    with GatewayProcess.start(base.environment(), log=logs / "gateway.log") as running:
        worker = WorkerProcess.start(base, running.endpoint, log=logs / "worker.log")
        try:
            worker.wait_until_ready()
            yield running
        finally:
            worker.process.stop()


@asynccontextmanager
async def guarded(ministack: Ministack, name: str) -> AsyncIterator[Stack]:
    """With the authorizer, for tokens of `signed`."""
    base = prepare_backend(ministack, table=name, queue=name)
    settings = {"GATECAST_AUTHORIZER": "required", **token.issuer_settings(base, SECRET)}
    authorizer.clear_caches()
    async with Stack.running(on=base, room_settings=HISTORY, route_settings=settings, authorizer=AUTHORIZER) as stack:
        yield stack
    authorizer.clear_caches()
    with base.client("secretsmanager") as manager:
        manager.delete_secret(SecretId="gatecast-tokens", ForceDeleteWithoutRecovery=True)


def client_of(url: str, made: client.TokenSource = None, options: Options = QUICK) -> Client:
    return client.connect(url, made, options=options, opener=client.opener(proxy=None))


async def drop(gateway: GatewayProcess, *clients: Client) -> None:
    await asyncio.to_thread(gateway.drop, [each.connection_id or "" for each in clients])


async def messages(room: Room, count: int) -> list[Message]:
    """The next messages; nothing may be missing before them."""
    found: list[Message] = []
    while len(found) < count:
        event = await anext(room)
        if isinstance(event, Message):
            found.append(event)
        else:
            assert not isinstance(event, Recovered) or event.recovered
    return found


def signed(user: str, seconds: float) -> str:
    now = time.time()
    return jwt.encode(
        {
            "iss": token.ISSUER,
            "aud": token.AUDIENCE,
            "sub": user,
            "iat": int(now),
            "exp": int(now + seconds),
            "gatecast": {"join": ["lobby"], "publish": ["lobby"]},
        },
        SECRET,
        "HS256",
    )


async def test_messages_with_history_survive_cuts_in_order(gateway: GatewayProcess, unique_name: str) -> None:
    async with client_of(gateway.url) as one, client_of(gateway.url) as other:
        room, _ = await one.join(unique_name), await other.join(unique_name)
        for number in range(30):
            if number % 5 == 3:
                await drop(gateway, one, other)
            await other.publish(unique_name, json={"n": number, "big": 2**70})
        received = await messages(room, 30)
        assert all(each.json["big"] == 2**70 for each in received)
        assert sorted(each.json["n"] for each in received) == list(range(30))
        offsets = [each.offset or 0 for each in received]
        assert all(after == before + 1 for before, after in itertools.pairwise(offsets))


async def test_json_arrives_as_its_bytes_and_long_messages_arrive(gateway: GatewayProcess, unique_name: str) -> None:
    raw = b'{"b":  [1.0, 9007199254740993],\t"a": {"a": 1, "a": 2}}'
    async with client_of(gateway.url) as connected:
        room = await connected.join(unique_name)
        await room.publish(json=msgspec.Raw(raw))
        await room.publish(data="x" * 100_000)
        message, long_one = sorted(await messages(room, 2), key=lambda each: len(each.data or ""))
        assert message.raw == raw
        assert long_one.data == "x" * 100_000


async def test_a_program_that_starts_again_continues_where_it_was(gateway: GatewayProcess, unique_name: str) -> None:
    async with client_of(gateway.url) as connected:
        room = await connected.join(unique_name)
        for number in range(250):
            await room.publish(data=f"{number} " + "x" * 1_000)
        [first] = await messages(room, 1)
    async with client_of(gateway.url) as connected:
        room = await connected.join(unique_name, since=first.offset)
        received = await messages(room, 249)
        assert [each.offset for each in received] == [(first.offset or 0) + 1 + n for n in range(249)]
        page = await room.history(first.offset or 0, limit=3)
        assert [each.id for each in page.messages] == [each.id for each in received[:3]]
        assert page.more
        assert (await connected.join(f"{unique_name}/other", last=2)).offset


async def test_a_position_that_the_server_does_not_have_is_reported(gateway: GatewayProcess, unique_name: str) -> None:
    async with client_of(gateway.url) as connected:
        room = await connected.join(unique_name, since=10**15)
        event = await anext(room)
        assert isinstance(event, Recovered)
        assert not event.recovered
        await room.publish(data="1")
        assert [each.data for each in await messages(room, 1)] == ["1"]


async def test_thirty_rooms_are_resumed_after_a_cut(gateway: GatewayProcess, unique_name: str) -> None:
    async with client_of(gateway.url) as one, client_of(gateway.url) as other:
        names = [f"{unique_name}/{number}" for number in range(30)]
        rooms = await asyncio.gather(*(one.join(name) for name in names))
        await asyncio.gather(*(other.join(name) for name in names))
        await drop(gateway, one)
        await asyncio.gather(*(other.publish(name, data=name) for name in names))
        for room in rooms:
            assert [each.data for each in await messages(room, 1)] == [room.name]


async def test_tokens_are_renewed_before_they_expire(ministack: Ministack, unique_name: str) -> None:
    made: list[str] = []

    async def fresh() -> str:
        made.append(signed("alice", -6))  # ten seconds of leeway remain
        return made[-1]

    async with (
        guarded(ministack, unique_name) as stack,
        client_of(stack.gateway.url, fresh, Options(min_lifetime_seconds=1)) as connected,
    ):
        room = await connected.join("lobby")
        assert [each.user for each in (await room.members()).users] == ["alice"]
        number = 0
        while len(made) < 3:
            await room.publish(data=str(number))
            [message] = await messages(room, 1)
            assert (message.data, message.from_) == (str(number), "alice")
            number += 1
            await asyncio.sleep(0.2)
        await until(lambda: len(stack.gateway.connections) == 1)
        with pytest.raises(client.RequestFailed, match="forbidden_room"):
            await connected.join("other")


async def test_a_token_that_proves_nothing_is_rejected(ministack: Ministack, unique_name: str) -> None:
    async with guarded(ministack, unique_name) as stack:
        with pytest.raises(client.ConnectionRejected) as rejected:
            await client_of(stack.gateway.url, signed("alice", -60)).__aenter__()
        assert rejected.value.status == 401


async def test_an_idle_connection_is_kept_by_pings(gateway: GatewayProcess, unique_name: str) -> None:
    async with client_of(gateway.url, options=Options(ping_seconds=0.1)) as idle:
        room = await idle.join(unique_name)
        before = idle.connection_id
        while (await asyncio.to_thread(gateway.counters))["mocks"].get("ping", 0) < 5:
            pass
        await room.publish(data="1")
        assert [each.data for each in await messages(room, 1)] == ["1"]
        assert idle.connection_id == before
