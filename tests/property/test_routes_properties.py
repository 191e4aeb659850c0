"""Any message gets a response, and any publish is a valid broadcast with an id in the publisher's own namespace."""

import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from gatecast import decode, encode
from gatecast.broadcast import MIN_TIME_MS
from routes.publishing import PublishRequest, publisher_key, to_broadcast
from routes.requests import Caller, RoomRequest, parse, ref_of, unknown_action
from routes.responses import Code, RequestRejected, ok
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


shapes = st.sampled_from(
    [
        '{{"action":"ping","ref":{}}}',
        '{{"ref": {} ,"x":[1e400]}}',
        '{{"ref":{},"room":"\\ud800"}}',
        '{{"ref":{}, "x":NaN}}',
    ]
)
integers = st.integers() | st.integers(1, 70).flatmap(lambda digits: st.integers(-(10**digits), 10**digits))
others = st.none() | st.booleans() | st.floats(allow_nan=False) | st.lists(st.integers(), max_size=1)


@given(shapes, integers | st.text(st.characters(categories=["L", "P", "Cs", "Cc"]), max_size=70) | others)
@example('{{"ref":{}}}', 2**53 + 1)
@example('{{"ref":{}}}', 10**64 - 1)
@example('{{"ref":{}}}', -(10**63))
@example('{{"ref":{}}}', 1.0)
def test_a_response_repeats_a_valid_ref_exactly_and_no_other(shape: str, ref: Any) -> None:
    encoded = json.dumps(ref)
    valid = isinstance(ref, str) and len(ref) <= 64 and not any("\ud800" <= each <= "\udfff" for each in ref)
    valid |= isinstance(ref, int) and not isinstance(ref, bool) and len(encoded) <= 64
    try:
        found = ref_of(shape.format(encoded))
    except RequestRejected as rejection:
        assert not valid
        assert str(rejection).startswith("ref: ")  # noqa: PT017 - either outcome is right
    else:
        assert valid
        body = ok("ping", {}, found)["body"]
        assert (json.loads(body)["ref"], type(found)) == (ref, type(ref))
        assert isinstance(ref, str) or body.endswith(f'"ref":{encoded}}}')


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
