"""The examples of the page for client developers are requests that the routes accept, responses that they send, and
frames that workers post; and each kind of response has an example."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from msgspec import UNSET

from gatecast import frames
from gatecast.frames import Message
from gatecast.room_settings import RoomSettings
from gatecast.rooms.presence import Members, User
from routes import handlers
from routes.requests import ACTIONS
from routes.responses import Code
from tests.route_doubles import NOW, Doubles
from tests.routes_events import CONNECTED_AT_MS, CONNECTION_ID, LambdaContext, event, token_context

PAGE = (Path(__file__).parents[2] / "docs/reference-clients.md").read_text()
ALICE = token_context(1_800_000_000, join="lobby news team", publish="news")
MESSAGE_FIELDS = {"id", "from", "offset", "published_at_ms", "data", "json", "reference"}


def examples() -> list[dict[str, Any]]:
    blocks = re.findall(r"^```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return [json.loads(line) for block in blocks for line in block.splitlines()]


REQUESTS = [each for each in examples() if "type" not in each]
RESPONSES = [each for each in examples() if each.get("type") in {"ok", "error", "pong"}]
TYPES = {"messages", "presence", "closed", "reference"}
FRAMES = [each for each in examples() if each.get("type") in TYPES]


def as_message(example: dict[str, Any]) -> Message:
    return msgspec.json.decode(json.dumps(example), type=Message)


class Kind(NamedTuple):
    """What distinguishes responses: two of a kind have the same fields."""

    type: str
    action: str | None
    fields: frozenset[str]

    @classmethod
    def from_response(cls, response: dict[str, Any]) -> "Kind":
        return cls(response["type"], response.get("action"), frozenset(response))


@pytest.fixture
def doubles(monkeypatch: pytest.MonkeyPatch) -> Doubles:
    doubles = Doubles().install(monkeypatch)
    doubles.with_history("news")
    doubles.settings["team"] = RoomSettings(presence=10)
    doubles.memberships.rooms[CONNECTION_ID] = {"lobby", "news", "team"}
    doubles.presence.pages["team", None] = Members([User("alice", 1), User("bob", 1)], "bob", 1_700_000_000_200)
    doubles.presence.pages["team", "bob"] = Members([User("carol", 2)], None, 1_700_000_000_300)
    doubles.stream.set_head("news", {"N": "1700000000000"})
    doubles.stream.append("news", from_="alice")
    doubles.stream.append("news", expires_at_ms=int(NOW * 1000))
    return doubles


def invoked(request: dict[str, Any]) -> dict[str, Any]:
    handler = getattr(handlers, request["action"] if request["action"] in ACTIONS else "default")
    response: dict[str, Any] = json.loads(
        handler(event(body=json.dumps(request), authorizer=ALICE), LambdaContext())["body"]
    )
    return response


def test_every_example_is_a_request_a_response_or_a_frame() -> None:
    assert len(REQUESTS) + len(RESPONSES) + len(FRAMES) == len(examples())
    assert {each["action"] for each in REQUESTS} == set(ACTIONS)
    assert {each["type"] for each in FRAMES} == TYPES


@pytest.mark.parametrize("request_", REQUESTS, ids=json.dumps)
def test_the_routes_accept_each_request(request_: dict[str, Any], doubles: Doubles) -> None:
    del doubles
    assert invoked(request_)["type"] in {"ok", "pong"}
    assert invoked(request_).get("ref") == request_.get("ref")


def sent(doubles: Doubles) -> Iterator[dict[str, Any]]:
    """A response of each kind."""
    requests = [*REQUESTS, {"action": "history", "room": "news", "since": 1_700_000_000_000, "limit": 1, "ref": 0}]
    requests.append({"action": "history", "room": "news", "since": 1_700_000_000_001, "ref": 0})
    requests.append({"action": "dance", "ref": 0})
    yield from map(invoked, requests)
    doubles.counter.left = 0
    yield invoked({"action": "join", "room": "lobby", "ref": 0})


def test_the_routes_send_each_response_and_no_other_kind(doubles: Doubles) -> None:
    shown = {Kind.from_response(each) for each in RESPONSES}
    found = {Kind.from_response(each) for each in sent(doubles)}
    without_skipped = {each for each in found if each.type == "ok" and each.action in {"join", "history"}}
    assert shown <= found
    assert found - shown <= without_skipped, "some of them have `skipped`, some have not"


def test_messages_and_rooms_in_responses_have_the_fields_of_the_real_ones(doubles: Doubles) -> None:
    found = list(sent(doubles))
    rooms = {frozenset(room) for response in found for room in response.get("rooms", ())}
    for response in RESPONSES:
        assert {frozenset(room) for room in response.get("rooms", ())} <= rooms
        for message in response.get("messages", ()):
            assert set(message) <= MESSAGE_FIELDS
            assert as_message(message).offset == message["offset"]
        assert response.get("expires_at_ms", CONNECTED_AT_MS + 7_200_000) == CONNECTED_AT_MS + 7_200_000


@pytest.mark.parametrize("frame", FRAMES, ids=json.dumps)
def test_each_frame_is_one_that_workers_post(frame: dict[str, Any]) -> None:
    match frame["type"]:
        case "messages":
            encoded = [as_message(each).encode() for each in frame["messages"]]
            posted = frames.messages(frame.get("room", UNSET), encoded, frame.get("skipped", UNSET))
        case "presence":
            posted = frames.presence(
                frame["room"], joined=frame["joined"], departed=frame["departed"], at_ms=frame["at_ms"]
            )
        case "reference":
            posted = frames.reference(msgspec.convert({**frame, "type": UNSET}, frames.Link))
        case _:
            posted = frames.closed(frame["code"], retry=frame["retry"])
    assert json.loads(posted) == frame


def test_each_error_code_has_its_line() -> None:
    _, _, section = PAGE.partition("## Error codes")
    assert sorted(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == sorted(Code)
