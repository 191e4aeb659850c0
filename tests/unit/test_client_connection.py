"""The client's connection, in virtual time, against a server in memory."""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec

import pytest

from gatecast.client import (
    Client,
    Closed,
    Connected,
    Connecting,
    ConnectionClosed,
    ConnectionFailed,
    ConnectionRejected,
    Disconnected,
    Member,
    Members,
    Message,
    Presence,
    Recovered,
    RequestFailed,
    State,
    WrongDialect,
)
from tests.client_server import (
    FIRST_OFFSET,
    PAGE,
    Server,
    client_of,
    fails,
    in_virtual_time,
    no_connection,
    read,
    shown,
    silent,
    until,
)

Parameters = ParamSpec("Parameters")


def virtual(test: Callable[Parameters, Coroutine[Any, Any, None]]) -> Callable[Parameters, None]:
    """A test that runs on a clock that jumps."""

    @functools.wraps(test)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        in_virtual_time(test(*args, **kwargs))

    return run


def tokens() -> tuple[list[str], Callable[[], Awaitable[str]]]:
    """The tokens that were made, and a callable that makes the next one."""
    made: list[str] = []

    async def make() -> str:
        made.append(f"token{len(made)}")
        return made[-1]

    return made, make


async def states_of(client: Client, seen: list[State]) -> None:
    async for state in client.states():
        seen.append(state)  # noqa: PERF401 - each at its time


def now() -> float:
    return asyncio.get_running_loop().time()


@virtual
async def test_messages_arrive_in_order_with_all_their_fields() -> None:
    server = Server()
    server.keep_history("lobby")
    async with client_of(server) as client:
        room = await client.join("lobby")
        assert client.connection_id == server.connections[0].id
        message_id = await room.publish(data="one", id="my-id")
        [message] = await read(room, 1)
        assert message_id == "@alice/my-id"
        assert message == Message(id=message_id, room="lobby", offset=FIRST_OFFSET + 1, published_at_ms=1, data="one")
        assert room.offset == FIRST_OFFSET + 1
    assert not server.open


@virtual
async def test_a_join_names_the_dialect_and_asks_for_the_latest_messages() -> None:
    server = Server()
    server.keep_history("lobby")
    for text in "abc":
        server.publish("lobby", text)
    async with client_of(server) as client:
        room = await client.join("lobby", last=2)
        assert shown(await read(room, 2)) == ["b", "c"]
    assert server.requests[0] == {"action": "join", "room": "lobby", "last": 2, "frames": 2, "ref": 1}


@virtual
async def test_the_latest_messages_that_do_not_fit_into_the_response_are_read_on() -> None:
    server = Server()
    server.keep_history("lobby")
    for number in range(13):
        server.publish("lobby", str(number))
    async with client_of(server) as client:
        room = await client.join("lobby", last=12)
        server.publish("lobby", "live")
        assert shown(await read(room, 13)) == [*map(str, range(1, 13)), "live"]
    history = [request for request in server.requests if request["action"] == "history"]
    assert [request["since"] for request in history] == [FIRST_OFFSET + 6, FIRST_OFFSET + 11]


@virtual
async def test_rooms_that_are_joined_at_once_share_a_request() -> None:
    server = Server()
    names = [f"room{number}" for number in range(60)]
    async with client_of(server) as client:
        await client.join("first")
        rooms = await asyncio.gather(*(client.join(name) for name in names))
        assert [room.name for room in rooms] == names
    assert [len(each.get("rooms", [each])) for each in server.requests] == [1, 25, 25, 10]


@virtual
async def test_after_a_cut_every_room_continues_where_it_was() -> None:
    server = Server()
    server.keep_history("a", "b")
    async with client_of(server) as client:
        a, b = await client.join("a"), await client.join("b")
        server.publish("a", "1")
        assert shown(await read(a, 1)) == ["1"]
        server.cut(server.open)
        server.publish("a", "2")
        server.publish("b", "3")
        assert shown(await read(a, 2)) == [True, "2"]
        assert shown(await read(b, 2)) == [True, "3"]
    join = server.connections[1].requests[0]
    assert join["rooms"] == [{"room": "a", "since": FIRST_OFFSET + 1}, {"room": "b", "since": FIRST_OFFSET}]


@virtual
async def test_a_long_absence_is_read_in_pages_while_messages_arrive() -> None:
    server = Server()
    server.keep_history("lobby")
    async with client_of(server) as client:
        room = await client.join("lobby")
        server.cut(server.open)
        texts = [str(number) for number in range(3 * PAGE)]
        for text in texts:
            server.publish("lobby", text)
        assert shown(await read(room, 2)) == [True, "0"]
        server.publish("lobby", "live")
        assert shown(await read(room, 3 * PAGE)) == [*texts[1:], "live"]


@virtual
async def test_messages_that_expired_meanwhile_are_reported() -> None:
    server = Server()
    server.keep_history("lobby")
    async with client_of(server) as client:
        room = await client.join("lobby")
        server.cut(server.open)
        server.publish("lobby", "lost")
        server.publish("lobby", "kept")
        server.expire("lobby", 1)
        first, second = FIRST_OFFSET, FIRST_OFFSET + 2
        [interruption, message] = await read(room, 2)
        assert interruption == Recovered(room="lobby", recovered=False, after=first, before=second)
        assert shown([message]) == ["kept"]


@virtual
async def test_without_history_a_reconnect_is_reported() -> None:
    server = Server()
    async with client_of(server) as client:
        room = await client.join("lobby")
        server.publish("lobby", "1")
        assert shown(await read(room, 1)) == ["1"]
        server.cut(server.open)
        assert await read(room, 1) == [Recovered(room="lobby", recovered=False)]
        assert room.offset is None


@virtual
async def test_a_message_that_stays_out_is_read_from_the_history() -> None:
    server = Server()
    server.keep_history("lobby")
    async with client_of(server, gap_seconds=10) as client:
        room = await client.join("lobby")
        server.publish("lobby", "1", lose=True)
        server.publish("lobby", "2")
        began = now()
        assert shown(await read(room, 2)) == ["1", "2"]
        assert 10 <= now() - began <= 13
    [request] = [each for each in server.requests if each["action"] == "history"]
    assert request["since"] == FIRST_OFFSET


@virtual
async def test_a_message_that_arrives_late_is_not_asked_for() -> None:
    server = Server(latency=iter([0.01] * 4 + [5.0] + [0.01] * 99).__next__)
    server.keep_history("lobby")
    async with client_of(server) as client:
        room = await client.join("lobby")
        server.publish("lobby", "1")
        server.publish("lobby", "2")
        assert shown(await read(room, 2)) == ["1", "2"]
        await asyncio.sleep(60)
    assert [each["action"] for each in server.requests] == ["join"]


@virtual
async def test_a_history_that_fails_for_a_while_is_asked_until_it_responds() -> None:
    server = Server()
    server.keep_history("lobby")
    server.script("history", *[fails("unavailable")] * 7, fails("rate_limited", retry_after_seconds=3), silent)
    async with client_of(server) as client:
        room = await client.join("lobby")
        server.publish("lobby", "1", lose=True)
        server.publish("lobby", "2")
        assert shown(await read(room, 3)) == [True, "1", "2"], "the silent one ended the connection"


@virtual
async def test_a_history_that_stays_limited_is_asked_no_sooner_than_it_says() -> None:
    server = Server()
    server.keep_history("lobby")
    server.script("history", *[fails("rate_limited", retry_after_seconds=10)] * 99)
    async with client_of(server) as client:
        await client.join("lobby")
        server.cut(server.open)
        for number in range(2 * PAGE):
            server.publish("lobby", str(number))
        await asyncio.sleep(300)
    assert 25 <= len([each for each in server.requests if each["action"] == "history"]) <= 31


@virtual
async def test_a_membership_that_is_lost_is_renewed() -> None:
    server = Server()
    server.keep_history("lobby")
    async with client_of(server) as client:
        room = await client.join("lobby")
        server.publish("lobby", "1", lose=True)
        server.publish("lobby", "2")
        await asyncio.sleep(1)
        server.room("lobby").members.clear()
        assert shown(await read(room, 3)) == [True, "1", "2"]


@virtual
async def test_a_position_beyond_the_head_is_given_up_with_a_report() -> None:
    """The table was restored from a backup."""
    server = Server()
    server.keep_history("lobby", "other")
    async with client_of(server) as client:
        room, other = await client.join("lobby"), await client.join("other")
        server.room("lobby").head = 7
        server.cut(server.open)
        assert await read(room, 1) == [Recovered(room="lobby", recovered=False, after=FIRST_OFFSET, before=8)]
        assert shown(await read(other, 1)) == [True]
        server.publish("lobby", "1")
        assert shown(await read(room, 1)) == ["1"]
        assert room.offset == 8


@virtual
async def test_history_that_is_switched_off_is_reported() -> None:
    server = Server()
    server.keep_history("lobby")
    async with client_of(server) as client:
        room = await client.join("lobby")
        server.publish("lobby", "1", lose=True)
        server.publish("lobby", "2")
        server.room("lobby").head = None
        [event, message] = await read(room, 2)
        assert isinstance(event, Recovered)
        assert not event.recovered
        assert shown([message]) == ["2"]
        server.publish("lobby", "3")
        assert shown(await read(room, 1)) == ["3"]


@virtual
async def test_a_join_that_is_rejected_raises_the_servers_error() -> None:
    server = Server()
    server.script("join", fails("forbidden_room"), fails("rate_limited", retry_after_seconds=4))
    async with client_of(server) as client:
        with pytest.raises(RequestFailed) as forbidden:
            await client.join("secret")
        assert forbidden.value.code == "forbidden_room"
        with pytest.raises(RequestFailed) as limited:
            await client.join("lobby")
        assert limited.value.retry_after_seconds == 4
        await client.join("lobby")
        with pytest.raises(ValueError, match="in this room already"):
            await client.join("lobby")


@virtual
async def test_a_join_outlives_failures_and_cuts() -> None:
    server = Server()
    server.script("join", fails("unavailable"), lambda connection, _request: server.cut([connection]))
    async with client_of(server) as client:
        room = await client.join("lobby")
        server.publish("lobby", "1")
        assert shown(await read(room, 1)) == ["1"], "and no interruption: it had not been joined before"


@virtual
async def test_a_server_that_stays_unavailable_fails_a_first_join_but_no_later_one() -> None:
    server = Server()
    server.keep_history("lobby")
    async with client_of(server) as client:
        room = await client.join("lobby")
        server.script("join", *[fails("unavailable")] * 20)
        server.cut(server.open)
        server.publish("lobby", "1")
        assert shown(await read(room, 2)) == [True, "1"]
        server.script("join", *[fails("unavailable")] * 5)
        with pytest.raises(RequestFailed, match="unavailable"):
            await client.join("other")


@virtual
async def test_a_room_that_may_not_be_joined_any_more_raises_at_its_reader() -> None:
    server = Server()
    async with client_of(server) as client:
        room, other = await client.join("a"), await client.join("b")
        rooms = [{"room": "a", "error": {"code": "forbidden_room", "message": "no"}}, {"room": "b"}]
        server.script("join", lambda *_: {"type": "ok", "action": "join", "rooms": rooms})
        server.publish("a", "1")
        await asyncio.sleep(1)
        server.cut(server.open)
        assert shown(await read(room, 1)) == ["1"]
        with pytest.raises(RequestFailed, match="forbidden_room"):
            await anext(room)
        assert shown(await read(other, 1)) == [False]
        await client.join("a")


@virtual
async def test_publishing_is_repeated_with_the_same_id_after_a_reconnect() -> None:
    server = Server()
    server.keep_history("lobby")

    def publish_and_cut(connection: Any, request: Any) -> None:
        server.respond(connection, request)
        server.cut([connection])

    server.script("publish", publish_and_cut, fails("unavailable"))
    async with client_of(server) as client:
        room = await client.join("lobby")
        await client.publish("lobby", data="once")
        assert shown(await read(room, 2)) == [True, "once"]
        await asyncio.sleep(60)
        assert not room._buffer
    ids = {each["id"] for each in server.requests if each["action"] == "publish"}
    assert len(ids) == 1


@virtual
async def test_without_echo_the_message_is_not_received_after_a_reconnect_either() -> None:
    server = Server()
    server.keep_history("lobby")
    async with client_of(server) as client:
        room = await client.join("lobby")
        await room.publish(data="mine", echo=False)
        server.cut(server.open)
        server.publish("lobby", "other")
        assert shown(await read(room, 2)) == [True, "other"]


@virtual
async def test_publishing_waits_until_the_room_is_joined_again() -> None:
    server = Server()
    async with client_of(server) as client:
        await client.join("lobby")
        server.failures = [no_connection()] * 3
        server.script("join", *[fails("unavailable")] * 3)
        server.cut(server.open)
        await client.publish("lobby", data="1")
    assert [each["action"] for each in server.connections[-1].requests] == ["join"] * 4 + ["publish"]


@virtual
async def test_a_rejected_publish_raises_the_servers_error() -> None:
    server = Server()
    server.script("publish", fails("rate_limited", retry_after_seconds=7))
    async with client_of(server) as client:
        await client.join("lobby")
        with pytest.raises(RequestFailed) as failed:
            await client.publish("lobby", json={"a": 1})
        assert (failed.value.code, failed.value.message) == ("rate_limited", "made for a test")
        assert failed.value.retry_after_seconds == 7
        with pytest.raises(RequestFailed, match="not_a_member"):
            await client.publish("elsewhere", data="1")
        with pytest.raises(RequestFailed, match="too_large"):
            await client.publish("lobby", data="x" * 131_072)
        with pytest.raises(RequestFailed, match="bad_request"):
            await client.publish("lobby", json=object())
        with pytest.raises(ValueError, match="exactly one"):
            await client.publish("lobby")


@virtual
async def test_a_token_that_has_expired_is_replaced_and_the_request_repeated() -> None:
    server = Server()
    made, token = tokens()
    server.script("publish", fails("token_expired"))
    async with client_of(server, token) as client:
        await client.join("lobby")
        await client.publish("lobby", data="1")
    assert len(made) == 2
    assert [each["action"] for each in server.connections[1].requests] == ["join", "publish"]


@virtual
async def test_publishing_in_a_room_whose_membership_is_lost_joins_it_again() -> None:
    server = Server()
    async with client_of(server) as client:
        await client.join("lobby")
        server.room("lobby").members.clear()
        await client.publish("lobby", data="1")
    assert [each["action"] for each in server.requests] == ["join", "publish", "join", "publish"]


@virtual
async def test_a_join_that_is_limited_is_repeated_no_sooner_than_the_server_says() -> None:
    server = Server()
    async with client_of(server) as client:
        room = await client.join("lobby")
        server.script("join", *[fails("rate_limited", retry_after_seconds=20)] * 3)
        server.cut(server.open)
        began = now()
        assert shown(await read(room, 1)) == [False]
        assert now() - began >= 60
    assert len(server.requests) == 5


@virtual
async def test_the_history_is_read_only_as_fast_as_the_program_reads() -> None:
    server = Server()
    server.keep_history("lobby")
    async with client_of(server, max_buffered=PAGE) as client:
        room = await client.join("lobby")
        server.cut(server.open)
        for number in range(20 * PAGE):
            server.publish("lobby", str(number))
        await asyncio.sleep(600)
        assert len(room._buffer) < 3 * PAGE
        texts = [str(number) for number in range(20 * PAGE)]
        assert shown(await read(room, 20 * PAGE + 1)) == [True, *texts]


@virtual
async def test_leaving_ends_the_reading_of_the_history() -> None:
    server = Server()
    server.keep_history("lobby")
    server.script("history", *[fails("rate_limited", retry_after_seconds=10)] * 99)
    async with client_of(server) as client:
        room = await client.join("lobby")
        server.cut(server.open)
        for number in range(2 * PAGE):
            server.publish("lobby", str(number))
        await asyncio.sleep(60)
        await room.leave()
        before = len(server.requests)
        await asyncio.sleep(60)
        assert len(server.requests) == before


@virtual
async def test_a_request_that_ends_every_connection_fails_in_the_end() -> None:
    server = Server()
    server.script("publish", *[lambda connection, _request: server.cut([connection])] * 99)
    async with client_of(server) as client:
        await client.join("lobby")
        with pytest.raises(Disconnected):
            await client.publish("lobby", data="1")


@virtual
async def test_a_message_that_is_too_large_for_the_server_is_not_sent_again() -> None:
    server = Server()
    server.script("publish", lambda connection, _request: server.cut([connection], 1009))
    async with client_of(server) as client:
        room = await client.join("lobby")
        with pytest.raises(RequestFailed, match="too_large"):
            await client.publish("lobby", data="x" * 60_000)
        assert shown(await read(room, 1)) == [False]


@virtual
async def test_a_gateway_error_fails_the_only_request_that_waits() -> None:
    server = Server()

    def gateway_error(connection: Any, _request: Any) -> None:
        server.send(connection, message="Internal server error", connectionId=connection.id, requestId="r")

    server.script("publish", gateway_error)
    async with client_of(server) as client:
        await client.join("lobby")
        await client.publish("lobby", data="1")
    assert len(server.connections) == 1, "repeated on the same connection"


@virtual
async def test_members_count_and_history_are_read() -> None:
    server = Server()
    server.keep_history("lobby")
    others = [client_of(server, f"user{number}") for number in range(PAGE)]
    async with client_of(server) as client:
        room = await client.join("lobby")
        for other in others:
            await other.__aenter__()
            await other.join("lobby")
        members = await room.members()
        assert [each.user for each in members.users] == ["alice", *(f"user{n}" for n in range(PAGE))]
        assert members.at_ms == 0, "this server gives no time"
        assert (await room.count()).members == PAGE + 1
        for number in range(PAGE + 1):
            server.publish("lobby", str(number))
        page = await room.history(FIRST_OFFSET)
        assert [each.data for each in page.messages] == [str(number) for number in range(PAGE)]
        assert (page.offset, page.recovered, page.more) == (FIRST_OFFSET + PAGE, True, True)
        plain = await client.join("plain")
        with pytest.raises(RequestFailed, match="bad_request"):
            await plain.history(0)
        for other in others:
            await other.__aexit__(None, None, None)


@virtual
async def test_presence_shows_the_latest_change_of_each_user() -> None:
    server = Server()
    async with client_of(server) as client:
        room = await client.join("lobby")
        [connection] = server.open

        def presence(at_ms: int, **users: list[str]) -> None:
            server.send(connection, type="presence", room="lobby", at_ms=at_ms, **users)

        presence(5, joined=["bob", "carol"])
        presence(4, departed=["bob"])
        presence(6, departed=["bob", "carol"])
        presence(6, joined=["carol"])
        assert await read(room, 3) == [
            Presence(room="lobby", joined=("bob", "carol"), at_ms=5),
            Presence(room="lobby", departed=("bob", "carol"), at_ms=6),
            Presence(room="lobby", joined=("carol",), at_ms=6),
        ]


@virtual
async def test_a_list_of_members_has_the_time_of_its_first_page() -> None:
    server = Server()

    def page(at_ms: int, *users: str, after: str | None = None) -> Callable[[Any, Any], dict[str, Any]]:
        listed = [{"user": user, "connections": 1} for user in users]
        return lambda _connection, _request: {"type": "ok", "users": listed, "after": after, "at_ms": at_ms}

    server.script("members", page(20, "alice", "bob", after="bob"), page(30, "carol"))
    async with client_of(server) as client:
        room = await client.join("lobby")
        assert await room.members() == Members(
            users=(Member("alice", 1), Member("bob", 1), Member("carol", 1)), at_ms=20
        )


@virtual
async def test_presence_that_is_older_than_a_list_can_be_told_from_later_presence() -> None:
    server = Server()
    async with client_of(server) as client:
        room = await client.join("lobby")
        [connection] = server.open

        def respond(_connection: Any, _request: Any) -> dict[str, Any]:
            for at_ms, changes in (
                (19, {"departed": ["alice"]}),
                (20, {"joined": ["bob"]}),
                (25, {"joined": ["carol"]}),
            ):
                server.send(connection, type="presence", room="lobby", at_ms=at_ms, **changes)
            return {"type": "ok", "users": [{"user": "alice", "connections": 1}], "after": None, "at_ms": 20}

        server.script("members", respond)
        members = await room.members()
        present = {each.user for each in members.users}
        for event in await read(room, 3):
            assert isinstance(event, Presence)
            if event.at_ms >= members.at_ms:
                present = (present | {*event.joined}) - {*event.departed}
        assert present == {"alice", "bob", "carol"}


@virtual
async def test_a_number_that_is_too_long_for_python_does_not_stop_reading() -> None:
    """Neither in the response of a join, nor live, nor in the history that fills a gap."""
    server = Server()
    server.keep_history("lobby")
    first, second, third, fourth = range(FIRST_OFFSET + 1, FIRST_OFFSET + 5)
    value = f'{{"a":{"7" * 5_000}}}'

    def encoded(offset: int) -> str:
        return f'{{"id":"i{offset}","offset":{offset},"published_at_ms":1,"json":{value}}}'

    def respond_with(offset: int) -> Callable[[Any, Any], None]:
        def respond(connection: Any, request: Any) -> None:
            page = f'"offset":{offset},"recovered":true,"messages":[{encoded(offset)}],"more":false'
            connection.texts.put_nowait(f'{{"type":"ok","ref":{request["ref"]},"room":"lobby",{page}}}')

        return respond

    server.script("join", respond_with(first))
    server.script("history", respond_with(second))
    async with client_of(server) as client:
        room = await client.join("lobby", since=FIRST_OFFSET)
        [connection] = server.open
        connection.texts.put_nowait(f'{{"type":"messages","room":"lobby","messages":[{encoded(third)}]}}')
        server.room("lobby").head = third
        server.room("lobby").members.add(connection)
        server.publish("lobby", "short")
        _, *messages = await read(room, 5)
        assert shown(messages) == [None, None, None, "short"]
        for offset, message in zip((first, second, third), messages, strict=False):
            assert isinstance(message, Message)
            assert (message.offset, message.raw) == (offset, value.encode())
            with pytest.raises(ValueError, match="4300 digits"):
                _ = message.json
        assert room.offset == fourth
    assert server.connections == [connection]


@virtual
async def test_leaving_ends_the_rooms_events() -> None:
    server = Server()
    async with client_of(server) as client:
        room = await client.join("lobby")
        await room.leave()
        assert [event async for event in room] == []
        assert not server.room("lobby").members
        await client.join("lobby")
        assert server.room("lobby").members


@virtual
async def test_a_join_that_is_cancelled_leaves_the_room() -> None:
    server = Server(latency=lambda: 1)
    async with client_of(server) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.5):
                await client.join("lobby")
        await asyncio.sleep(10)
        assert [each["action"] for each in server.requests] == ["join", "leave"]
        assert not server.room("lobby").members


@virtual
async def test_a_room_that_is_left_while_it_is_joined_ends_the_join() -> None:
    server = Server(latency=lambda: 1)
    async with client_of(server) as client:
        joining = asyncio.create_task(client.join("lobby"))
        await asyncio.sleep(0.5)
        await client.leave("lobby")
        with pytest.raises(RequestFailed, match="left before it was joined"):
            await joining
        await asyncio.sleep(10)
        assert not server.room("lobby").members


@virtual
async def test_connections_that_end_while_the_history_is_read_stop_nothing() -> None:
    server = Server()
    server.keep_history("lobby")

    def nothing_yet(connection: Any, request: Any) -> Any:
        full = server.respond(connection, request)
        return {**full, "offset": FIRST_OFFSET, "recovered": False, "messages": [], "more": True}

    async with client_of(server) as client:
        room = await client.join("lobby")
        server.script("join", *[nothing_yet] * 30)
        server.script("history", *[lambda connection, _request: server.cut([connection])] * 25)
        server.cut(server.open)
        server.publish("lobby", "1")
        assert shown(await read(room, 1)) == ["1"]
    assert len(server.connections) == 27


@virtual
async def test_a_client_that_has_stopped_asks_for_nothing_more() -> None:
    server = Server()
    server.keep_history("lobby")
    async with client_of(server) as client:
        room = await client.join("lobby")
        server.publish("lobby", "1", lose=True)
        server.publish("lobby", "2")
        await asyncio.sleep(1)
        server.send(server.open[0], type="closed", code="banned", retry=False)
        with pytest.raises(ConnectionClosed):
            await anext(room)
        await asyncio.sleep(60)
        assert [each["action"] for each in server.requests] == ["join"]
        assert not server.open


@virtual
async def test_a_program_that_only_publishes_need_not_read() -> None:
    server = Server()
    server.keep_history("lobby")
    async with client_of(server, max_buffered=2) as client:
        room = await client.join("lobby", listen=False)
        for number in range(10):
            await room.publish(data=str(number))
        server.cut(server.open)
        await room.publish(data="after a reconnect")
        assert not room._buffer
        assert room.offset is None
        assert server.open[0].texts.empty()
    assert {each["action"] for each in server.requests} == {"join", "publish"}


@virtual
async def test_messages_of_no_room_are_read_apart() -> None:
    server = Server()
    async with client_of(server) as client:
        [connection] = server.open
        direct = client.direct()
        message = {"id": "1", "published_at_ms": 1, "data": "hello"}
        server.send(connection, type="messages", messages=[message, message])
        server.send(connection, type="messages", room="@all", messages=[message])
        server.send(connection, type="messages", room="left", messages=[message])
        first, second = await anext(direct), await anext(direct)
        assert isinstance(first, Message)
        assert isinstance(second, Message)
        assert (first.room, second.room) == (None, "@all")
        server.cut([connection])
        assert await anext(direct) == Recovered(room=None, recovered=False)
    assert [event async for event in direct] == []


@virtual
async def test_a_program_that_does_not_read_stops_the_reading_of_the_socket() -> None:
    server = Server()
    server.keep_history("lobby")
    async with client_of(server, max_buffered=10) as client:
        room = await client.join("lobby")
        texts = [str(number) for number in range(100)]
        for text in texts:
            server.publish("lobby", text)
        await asyncio.sleep(5)
        assert len(room._buffer) == 10
        assert server.open[0].texts.qsize() == 90
        assert shown(await read(room, 100)) == texts


@virtual
async def test_responses_are_read_although_the_program_does_not_read_messages() -> None:
    """What does not fit meanwhile is read from the history."""
    server = Server()
    server.keep_history("lobby")
    async with client_of(server, max_buffered=10) as client:
        room = await client.join("lobby")
        texts = [str(number) for number in range(100)]
        for text in texts:
            server.publish("lobby", text)
        await asyncio.sleep(5)
        await client.publish("lobby", data="mine")
        assert len(room._buffer) == 20
        assert shown(await read(room, 101)) == [*texts, "mine"]


@virtual
async def test_without_history_what_does_not_fit_is_reported() -> None:
    server = Server()
    async with client_of(server, max_buffered=10) as client:
        room = await client.join("lobby")
        for number in range(100):
            server.publish("lobby", str(number))
        await asyncio.sleep(5)
        await client.publish("lobby", data="mine")
        await client.publish("lobby", data="mine, too")
        assert shown(await read(room, 21)) == [*(str(number) for number in range(20)), False]


@virtual
async def test_leaving_a_room_that_is_full_lets_others_be_read() -> None:
    server = Server()
    async with client_of(server, max_buffered=10) as client:
        full, other = await client.join("full"), await client.join("other")
        for number in range(10):
            server.publish("full", str(number))
        server.publish("other", "1")
        await asyncio.sleep(5)
        await full.leave()
        for text in "234":
            server.publish("other", text)
        assert shown(await read(other, 4)) == ["1", "2", "3", "4"]
        assert now() < 10, "and not only while the next ping waits for its response"


@virtual
async def test_the_connection_is_renewed_before_it_is_cut_and_nothing_shows() -> None:
    server = Server()
    server.keep_history("lobby")
    made, token = tokens()
    seen: list[State] = []
    async with client_of(server, token) as client:
        watching = asyncio.create_task(states_of(client, seen))
        room, plain = await client.join("lobby"), await client.join("plain")
        texts = [str(number) for number in range(10 * 60)]
        for text in texts:
            server.publish("lobby", text)
            server.publish("plain", text)
            await asyncio.sleep(60)
        assert shown(await read(room, len(texts))) == texts
        assert shown(await read(plain, len(texts))) == texts
        assert 5 < len(server.connections) < 10
        assert len(room._joined.sessions) == 1, "old ones are forgotten"
        assert len(server.open) == 1
        assert made == [each.token for each in server.connections]
    await watching
    assert seen == [Connected(), Closed("closed")]


@virtual
async def test_the_old_connection_is_closed_only_when_all_rooms_are_joined_on_the_new_one() -> None:
    server = Server(latency=lambda: 1)
    server.keep_history("lobby")
    async with client_of(server) as client:
        await client.join("lobby")
        [old] = server.open
        server.script("join", *[fails("unavailable")] * 4)
        server.send(old, type="reconnect", within_ms=100_000)
        while len(server.room("lobby").members) < 2:
            assert old.close_code is None
            await asyncio.sleep(0.1)
        await asyncio.sleep(10)
        assert old.close_code is not None
        assert len(server.open) == 1


@virtual
async def test_what_is_on_its_way_to_the_old_connection_is_delivered_after_a_renewal() -> None:
    server = Server()
    async with client_of(server) as client:
        room = await client.join("lobby")
        [old] = server.open
        server.send(old, type="reconnect", within_ms=60_000)
        await until(lambda: len(server.room("lobby").members) == 2)
        await asyncio.sleep(1)
        message = {"id": "1", "published_at_ms": 1, "data": "late"}
        server.send(old, type="messages", room="lobby", messages=[message])
        assert shown(await read(room, 1)) == ["late"]
        await until(lambda: len(server.open) == 1)


@virtual
async def test_a_token_is_renewed_before_it_expires() -> None:
    server = Server()
    server.lifetime_ms = lambda _connection: 600_000
    made, token = tokens()
    async with client_of(server, token) as client:
        await client.join("lobby")
        await asyncio.sleep(3_600)
        assert 6 <= len(made) <= 10


@virtual
async def test_a_fixed_token_is_not_renewed_because_it_would_not_help() -> None:
    server = Server()
    server.lifetime_ms = lambda _connection: 600_000
    async with client_of(server, "fixed") as client:
        room = await client.join("lobby")
        await asyncio.sleep(590)
        assert len(server.connections) == 1
        server.failures = [ConnectionRejected(401)]
        server.send(server.open[0], type="closed", code="token_expired", retry=True)
        with pytest.raises(ConnectionClosed, match="401"):
            await anext(room)


@virtual
async def test_a_renewal_that_fails_is_repeated_and_disturbs_nothing() -> None:
    server = Server()
    seen: list[State] = []
    async with client_of(server) as client:
        watching = asyncio.create_task(states_of(client, seen))
        room = await client.join("lobby")
        server.failures = [no_connection()] * 5
        server.send(server.open[0], type="reconnect", within_ms=600_000)
        await asyncio.sleep(500)
        assert len(server.connections) == 2
        server.publish("lobby", "1")
        assert shown(await read(room, 1)) == ["1"]
    await watching
    assert seen == [Connected(), Closed("closed")]


@virtual
async def test_a_new_connection_that_is_cut_during_a_renewal_is_replaced_and_nothing_shows() -> None:
    server = Server(latency=lambda: 1)
    seen: list[State] = []
    async with client_of(server) as client:
        watching = asyncio.create_task(states_of(client, seen))
        room = await client.join("lobby")
        server.send(server.open[0], type="reconnect", within_ms=1)
        await until(lambda: len(server.connections) == 2)
        server.cut(server.open[1:])
        await until(lambda: len(server.connections) == 3 and len(server.open) == 1)
        server.publish("lobby", "1")
        assert shown(await read(room, 1)) == ["1"]
    await watching
    assert seen == [Connected(), Closed("closed")]


@virtual
async def test_a_cut_during_a_renewal_loses_nothing() -> None:
    server = Server(latency=lambda: 1)
    server.keep_history("lobby")
    async with client_of(server) as client:
        room = await client.join("lobby")
        [old] = server.open
        server.send(old, type="reconnect", within_ms=1)
        await until(lambda: len(server.connections) == 2)
        server.cut([old])
        server.publish("lobby", "1")
        assert shown(await read(room, 2)) == [True, "1"]
        assert len(server.connections) == 2, "the one that was being opened is used"


@virtual
async def test_rooms_that_are_joined_and_left_during_a_renewal_are_right_afterwards() -> None:
    server = Server(latency=lambda: 1)
    server.keep_history("a", "b", "c")
    async with client_of(server) as client:
        a, _ = await client.join("a"), await client.join("b")
        server.send(server.open[0], type="reconnect", within_ms=1)
        await until(lambda: len(server.connections) == 2 and bool(server.connections[1].requests))
        joining = asyncio.create_task(client.join("c"))
        await client.leave("b")
        c = await joining
        await asyncio.sleep(60)
        [connection] = server.open
        assert {name for name, room in server.rooms.items() if connection in room.members} == {"a", "c"}
        server.publish("a", "1")
        server.publish("c", "2")
        assert shown(await read(a, 1)) == ["1"]
        assert shown(await read(c, 1)) == ["2"]


@virtual
async def test_an_idle_connection_is_kept_alive() -> None:
    server = Server()
    async with client_of(server):
        await asyncio.sleep(3_000)
        assert len(server.connections) == 1
        pings = server.connections[0].requests
        assert 10 <= len(pings) <= 13
        assert {each["action"] for each in pings} == {"ping"}


@virtual
async def test_a_missing_pong_ends_the_connection() -> None:
    server = Server()
    server.keep_history("lobby")
    server.script("ping", silent)
    async with client_of(server) as client:
        room = await client.join("lobby")
        server.room("lobby").members.clear()
        server.publish("lobby", "1")
        assert shown(await read(room, 2)) == [True, "1"]
        assert now() < 400
        assert len(server.connections) == 2


@virtual
async def test_a_pong_without_a_ref_belongs_to_the_ping() -> None:
    """A response that API Gateway makes without a function may not be able to repeat it."""
    server = Server()
    server.script("publish", silent)
    server.script("ping", lambda connection, _request: server.send(connection, type="pong"))
    async with client_of(server, ping_seconds=10) as client:
        await client.join("lobby")
        publishing = asyncio.create_task(client.publish("lobby", data="1"))
        await asyncio.sleep(25)
        assert len(server.connections) == 1
        await publishing
        assert len(server.connections) == 2


@virtual
async def test_a_request_without_a_response_ends_the_connection_and_is_repeated() -> None:
    server = Server()
    server.script("publish", silent)
    async with client_of(server) as client:
        await client.join("lobby")
        await client.publish("lobby", data="1")
        assert len(server.connections) == 2


@virtual
async def test_a_closed_frame_with_retry_leads_to_a_new_token() -> None:
    server = Server()
    made, token = tokens()
    async with client_of(server, token) as client:
        room = await client.join("lobby")
        server.send(server.open[0], type="closed", code="token_expired", retry=True)
        assert shown(await read(room, 1)) == [False]
        assert len(made) == 2


@virtual
async def test_a_closed_frame_without_retry_stops_the_client() -> None:
    server = Server()
    seen: list[State] = []
    async with client_of(server) as client:
        watching = asyncio.create_task(states_of(client, seen))
        room = await client.join("lobby")
        server.publish("lobby", "1")
        await asyncio.sleep(1)
        server.send(server.open[0], type="closed", code="banned", retry=False)
        assert shown(await read(room, 1)) == ["1"], "what has arrived can be read"
        with pytest.raises(ConnectionClosed) as closed:
            await anext(room)
        assert closed.value.code == "banned"
        with pytest.raises(ConnectionClosed):
            await client.publish("lobby", data="1")
        with pytest.raises(ConnectionClosed):
            await client.join("other")
        with pytest.raises(ConnectionClosed):
            await anext(client.direct())
        await room.leave()
        await watching
        assert seen == [Connected(), Closed("banned")]
        await until(lambda: not server.open)


@virtual
async def test_reconnects_wait_longer_and_longer_at_random() -> None:
    server = Server(latency=lambda: 0)
    seen: list[State] = []
    async with client_of(server) as client:
        watching = asyncio.create_task(states_of(client, seen))
        await asyncio.sleep(60)
        server.failures = [no_connection()] * 20
        server.cut(server.open)
        began = now()
        await until(lambda: isinstance(client.state, Connecting))
        await until(lambda: isinstance(client.state, Connected))
        assert 100 < now() - began < 20 * 30
    await watching
    assert [each.failures for each in seen if isinstance(each, Connecting)] == list(range(21))


@virtual
async def test_a_server_that_cuts_at_once_is_not_besieged() -> None:
    server = Server()
    async with client_of(server):
        for _ in range(3_600):
            server.cut(server.open)
            await asyncio.sleep(1)
    assert len(server.connections) < 600


@virtual
async def test_the_first_connection_is_retried_for_a_while() -> None:
    server = Server()
    server.failures = [no_connection()] * 3
    async with client_of(server):
        assert len(server.open) == 1
    server.failures = [no_connection()] * 99
    with pytest.raises(ConnectionFailed):
        await client_of(server).__aenter__()
    assert now() < 60


@pytest.mark.parametrize("error", [ConnectionRejected(401), ConnectionRejected(403), WrongDialect("gatecast.v1")])
def test_a_first_connection_that_is_rejected_fails_at_once(error: ConnectionFailed) -> None:
    async def scenario() -> None:
        server = Server()
        server.failures = [error]
        with pytest.raises(type(error)):
            await client_of(server).__aenter__()
        assert now() < 1

    in_virtual_time(scenario())


@virtual
async def test_rejections_in_a_row_stop_the_client_although_its_token_changes() -> None:
    server = Server()
    _, token = tokens()
    async with client_of(server, token) as client:
        room = await client.join("lobby")
        server.failures = [ConnectionRejected(401)] * 4
        server.cut(server.open)
        assert shown(await read(room, 1)) == [False]
        server.failures = [ConnectionRejected(403)] * 5
        server.cut(server.open)
        with pytest.raises(ConnectionClosed, match="403"):
            await anext(room)


@virtual
async def test_a_server_of_the_old_dialect_stops_the_client() -> None:
    server = Server()
    async with client_of(server) as client:
        room = await client.join("lobby")
        server.failures = [WrongDialect("gatecast.v1")]
        server.cut(server.open)
        with pytest.raises(ConnectionClosed, match=r"gatecast\.v1"):
            await anext(room)


@virtual
async def test_a_token_that_cannot_be_made_for_a_while_is_asked_for_until_it_can() -> None:
    server = Server()
    failures = [OSError("the issuer is down")] * 5

    async def token() -> str:
        if len(server.connections) == 1 and failures:
            raise failures.pop()
        return "token"

    async with client_of(server, token) as client:
        room = await client.join("lobby")
        server.cut(server.open)
        assert shown(await read(room, 1)) == [False]


@virtual
async def test_frames_that_are_unknown_or_malformed_are_ignored() -> None:
    server = Server()
    async with client_of(server) as client:
        room = await client.join("lobby")
        [connection] = server.open
        for text in (
            "",
            "[]",
            "{",
            '{"type":"new","messages":7}',
            '{"type":"messages","room":"lobby","messages":7}',
            "7",
        ):
            connection.texts.put_nowait(text)
        message = {"id": "1", "published_at_ms": 1, "data": "x", "new": 1}
        server.send(connection, type="messages", room="lobby", messages=[message], new=1)
        assert shown(await read(room, 1)) == ["x"]


@virtual
async def test_the_end_of_the_block_ends_iterators_and_waiting_requests() -> None:
    server = Server()
    server.script("publish", silent)
    async with client_of(server) as client:
        room = await client.join("lobby")
        publishing = asyncio.create_task(client.publish("lobby", data="1"))
        joining = asyncio.create_task(client.join("other"))
        reading = asyncio.create_task(anext(room, None))
        await asyncio.sleep(0)
    assert await reading is None
    for waiting in (publishing, joining):
        with pytest.raises(ConnectionClosed, match="closed"):
            await waiting
    assert not server.open
    assert len(asyncio.all_tasks()) <= 2, "this one and its time limit"


@virtual
async def test_an_error_in_the_clients_own_code_reaches_every_reader() -> None:
    server = Server()
    async with client_of(server) as client:
        room = await client.join("lobby")
        server.failures = [ZeroDivisionError()]
        server.cut(server.open)
        with pytest.raises(ZeroDivisionError):
            await anext(room)
        with pytest.raises(ConnectionClosed, match="ZeroDivisionError"):
            await client.publish("lobby", data="1")


@virtual
async def test_a_client_is_used_once_and_only_in_its_block() -> None:
    server = Server()
    client = client_of(server)
    with pytest.raises(RuntimeError, match="async with"):
        await client.join("lobby")
    async with client:
        pass
    with pytest.raises(RuntimeError, match="once"):
        await client.__aenter__()
    with pytest.raises(ConnectionClosed):
        await client.join("lobby")


@virtual
async def test_the_offset_of_a_room_is_that_of_the_next_event_that_the_program_reads() -> None:
    server = Server()
    server.keep_history("lobby")
    for data in ("1", "2", "3"):
        server.publish("lobby", data)
    async with client_of(server) as client:
        room = await client.join("lobby", since=FIRST_OFFSET)
        assert room.offset == FIRST_OFFSET
        assert shown(await read(room, 2)) == [True, "1"]
        assert room.offset == FIRST_OFFSET + 1
        assert shown(await read(room, 2)) == ["2", "3"]
        assert room.offset == FIRST_OFFSET + 3
