"""Any message gets a response, and any publish is a valid broadcast with an id in the publisher's own namespace."""

import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from gatecast import decode, encode
from gatecast.broadcast import MIN_TIME_MS
from routes.publishing import PublishRequest, publisher_key, to_broadcast
from routes.requests import Caller, RoomRequest, parse, unknown_action
from routes.responses import Code, RequestRejected
from tests.property.strategies import names

CALLER = Caller(connection_id="L0SM9cOFvHcCIhw=", connected_at_ms=0, requested_at_ms=1_700_000_000_000)
FIELDS = ("action", "room", "data", "id", "echo")
values = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | names() | st.lists(st.text(), max_size=2)
texts = st.text(st.characters() | st.characters(categories=["Cs"]), max_size=30) | st.dictionaries(
    st.sampled_from(FIELDS) | st.text(max_size=3), values, max_size=6
).map(json.dumps)


@given(st.none() | texts)
@example('{"room":"a","data":"\\ud800"}')
@example('{"room":"a","data":"x","x":' + "[" * 990 + '"\\ud800"' + "]" * 990 + "}")
def test_any_text_is_a_request_or_rejected(body: str | None) -> None:
    assert isinstance(unknown_action(body), RequestRejected)
    for kind in (RoomRequest, PublishRequest):
        try:
            request: Any = parse(body, kind)
            if isinstance(request, PublishRequest):
                encode(to_broadcast(request, CALLER, generated_id="made-up"))
        except RequestRejected as rejection:
            json.dumps(rejection.message).encode()
            assert isinstance(rejection.code, Code)  # noqa: PT017 - either outcome is right


users = st.none() | st.text(min_size=1, max_size=94).filter(lambda user: user.isprintable()) | names()


@given(users, users, names(), names())
@example("a/b", "a", "c", "b/c")
@example("a%2Fb", "a/b", "c", "c")
@example(CALLER.connection_id, None, "1", "1")
def test_publishers_cannot_share_ids(one: str | None, other: str | None, its_id: str, others_id: str) -> None:
    made = []
    for user, own_id in ((one, its_id), (other, others_id)):
        caller = Caller(connection_id=CALLER.connection_id, connected_at_ms=0, requested_at_ms=MIN_TIME_MS, user=user)
        own_id = own_id[: 99 - len(publisher_key(caller))]  # noqa: PLW2901 - as long as it may be
        broadcast = to_broadcast(PublishRequest("lobby", "hello", id=own_id), caller, generated_id="made-up")
        assert decode(encode(broadcast)) == broadcast
        made.append((broadcast.id, (user, own_id)))
    (first, its), (second, others) = made
    assert (first == second) == (its == others)
