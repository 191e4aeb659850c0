"""The rule of events.yaml: what EventBridge makes of an event, and which rules and topics may send to the queue."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatecast import Broadcast, InvalidBroadcast, decode
from gatecast.broadcast import MAX_DATA_BYTES, MAX_NESTING
from tests.templates import Template

EVENT_ID = "6a7e8feb-b491-4cf7-a9f1-bf3703467718"
FIXED = {"EventRoom": "ticker"}
BY_PATH = {"EventRoom": "@user/", "EventRoomPath": "$.detail.user"}
QUEUE = {"Broadcasts.Arn": "arn:queue"}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=12,
)


def rule(**parameters: str) -> dict[str, Any]:
    given = {"QueueArn": "arn:queue", "EventPattern": '{"source": ["orders"]}', **parameters}
    return Template("events", given).properties("Events")


@cache
def target(**parameters: str) -> dict[str, Any]:
    [found] = rule(**parameters)["Targets"]
    assert isinstance(found, dict)
    return found


def event(detail: Any) -> dict[str, Any]:
    return {
        "version": "0", "id": EVENT_ID, "detail-type": "Order", "source": "orders", "account": "000000000000",
        "time": "2026-11-20T12:00:00Z", "region": "us-east-1", "resources": [], "detail": detail,
    }  # fmt: skip


def body(detail: Any, parameters: dict[str, str], *, ascii_only: bool = False) -> str:
    """What EventBridge sends to the queue for an event with this detail.

    A text is put in as it is, without escapes; anything else as JSON, and without quotes if it stands in a text.
    Nothing stands for a path that leads nowhere. Source: EventBridge's user guide, Input transformation.
    """
    transformer = target(**parameters)["InputTransformer"]
    values: dict[str, Any] = {}
    for name, path in transformer["InputPathsMap"].items():
        found: Any = event(detail)
        for key in path.removeprefix("$.").split("."):
            found = found.get(key, "") if isinstance(found, dict) else ""
        values[name] = found

    def in_text(placeholder: re.Match[str]) -> str:
        value = values[placeholder[1]]
        return value if isinstance(value, str) else json.dumps(value).replace('"', "")

    def replaced(part: re.Match[str]) -> str:
        if part[0].startswith('"'):
            return re.sub(r"<(\w+)>", in_text, part[0])
        return json.dumps(values[part[1]], ensure_ascii=ascii_only)

    return re.sub(r'"(?:\\.|[^"\\])*"|<(\w+)>', replaced, transformer["InputTemplate"])


# What is published


@given(detail=st.dictionaries(st.text(), JSON, max_size=5), ascii_only=st.booleans())
def test_the_detail_of_an_event_is_the_json_of_a_broadcast(detail: dict[str, Any], ascii_only: bool) -> None:
    broadcast = decode(body(detail, FIXED, ascii_only=ascii_only))
    assert isinstance(broadcast.json, msgspec.Raw)
    assert json.loads(bytes(broadcast.json)) == detail
    assert broadcast == Broadcast(id=EVENT_ID, room="ticker", json=broadcast.json)


@pytest.mark.parametrize(
    "detail",
    [
        {"text": 'quotes "inside" and \\ and \\" at the end"'},
        {"text": "braces {} and <id> and <detail> and <room>", "list": [{"a": [[]]}, {}, "]}"]},
        {"text": "zoë, 🎉, \u2028, \ufffe and a\nbreak\tand\0nothing", "ключ": "值"},
        {"v": 2, "room": "another", "id": "another", "close": {"code": "banned", "retry": False}},
        {"number": 12345678901234567890123, "none": None},
        {},
    ],
)
def test_no_detail_changes_what_stands_around_it(detail: dict[str, Any]) -> None:
    broadcast = decode(body(detail, FIXED))
    assert (broadcast.v, broadcast.id, broadcast.room, broadcast.close) == (1, EVENT_ID, "ticker", msgspec.UNSET)
    assert isinstance(broadcast.json, msgspec.Raw)
    assert json.loads(bytes(broadcast.json)) == detail


def test_the_room_is_a_value_of_the_event_behind_a_fixed_beginning() -> None:
    assert decode(body({"user": "ann"}, BY_PATH)).room == "@user/ann"
    assert decode(body({"order": {"room": "orders/7"}}, {"EventRoomPath": "$.detail.order.room"})).room == "orders/7"
    assert decode(body({}, {"EventRoom": "all", "EventRoomPath": "$.source"})).room == "allorders"


@pytest.mark.parametrize(
    "detail", [{}, {"user": ""}, {"user": "zoë"}, {"user": "two words"}, {"user": "a\nb"}, {"user": "x" * 101}]
)
def test_an_event_whose_room_is_no_name_is_poison(detail: dict[str, Any]) -> None:
    with pytest.raises(InvalidBroadcast):
        decode(body(detail, {"EventRoomPath": "$.detail.user"}))


@pytest.mark.parametrize(
    "user",
    [
        'x", "v": 2, "close": {"code": "banned", "retry": false}, "from": "y',
        'x", "v": 2, "id": "other", "json": 1, "from": "y',
        'x", "json": "other", "from": "y',
        'x", "data": "other", "from": "y',
        'x", "connections": ["a="], "from": "y',
        'x", "offset": 7, "part": "p", "except": ["a="], "receipt": true, "from": "y',
        'x"}{"',
        "x\\",
    ],
)
def test_a_room_with_quotes_in_it_changes_neither_version_nor_id_nor_payload(user: str) -> None:
    try:
        broadcast = decode(body({"user": user}, BY_PATH))
    except InvalidBroadcast:
        return
    assert (broadcast.v, broadcast.id, broadcast.close, broadcast.data) == (1, EVENT_ID, msgspec.UNSET, msgspec.UNSET)
    assert isinstance(broadcast.json, msgspec.Raw)
    assert json.loads(bytes(broadcast.json)) == {"user": user}


@pytest.mark.parametrize(
    ("detail", "problem"),
    [({"text": "x" * MAX_DATA_BYTES}, "131,072 bytes"), ({"a": json.loads("[" * MAX_NESTING + "]" * MAX_NESTING)}, "")],
)
def test_a_detail_that_is_too_large_or_nested_too_deep_is_poison(detail: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidBroadcast, match=rf"^json: .*{problem}"):
        decode(body(detail, FIXED))


# The rule


def test_the_rule_sends_to_the_queue_in_the_group_of_the_room_and_keeps_what_fails() -> None:
    found = rule(**FIXED)
    assert (found["Name"], found["EventBusName"]) == ("gatecast-events", "default")
    assert json.loads(found["EventPattern"]) == {"source": ["orders"]}
    assert (target(**FIXED)["Arn"], target(**FIXED)["SqsParameters"]) == ("arn:queue", {"MessageGroupId": "ticker"})
    assert target(**BY_PATH)["SqsParameters"] == {"MessageGroupId": "$.detail.user"}
    assert target(**FIXED)["DeadLetterConfig"] == {"Arn": "${Undelivered.Arn}"}
    template = Template("events", {"QueueArn": "arn:queue", **FIXED})
    only_tls, of_the_rule = template.properties("UndeliveredPolicy")["PolicyDocument"]["Statement"]
    assert only_tls["Effect"] == "Deny"
    assert of_the_rule["Condition"] == {"ArnEquals": {"aws:SourceArn": "${Events.Arn}"}}
    dimensions = template.properties("UndeliveredEvents")["Dimensions"]
    assert dimensions == [{"Name": "QueueName", "Value": "${Undelivered.QueueName}"}]


@pytest.mark.parametrize(
    ("parameter", "accepted", "rejected"),
    [
        ("QueueArn", ["arn:aws:sqs:eu-west-1:1:gatecast-broadcasts"], ["arn:aws:sqs:eu-west-1:1:q.fifo", ""]),
        ("EventRoom", ["", "ticker", "@user/", "a!#=;?[]~^`{|}"], ['a"', "a\\", "<room>", "a b", "ö", "x" * 101]),
        ("EventRoomPath", ["", "$.detail.user", "$.detail.a-b.c_d"], ["$", "detail.user", "$.detail['user']", "$.a b"]),
        ("EventBus", ["default", "aws.partner/example.com/a-1_b"], ["", "a b", "arn:aws:events:1"]),
    ],
)
def test_parameters_that_make_no_valid_message_are_rejected(
    parameter: str, accepted: list[str], rejected: list[str]
) -> None:
    pattern = Template("events").parameters[parameter]["AllowedPattern"]
    assert [each for each in accepted if not re.fullmatch(pattern, each)] == []
    assert [each for each in rejected if re.fullmatch(pattern, each)] == []


@pytest.mark.parametrize(
    ("given", "valid"),
    [
        ({"EventPattern": "{}", "EventRoom": "a"}, True),
        ({"EventPattern": "{}", "EventRoomPath": "$.detail.a"}, True),
        ({"EventPattern": "{}"}, False),
        ({"EventRoom": "a"}, False),
    ],
)
def test_a_rule_needs_a_pattern_and_a_room(given: dict[str, str], valid: bool) -> None:
    template = Template("events", given)
    assertions = template.source["Rules"]["PatternAndRoom"]["Assertions"]
    assert all(template.holds(each["Assert"]) for each in assertions) is valid


# Who may send


def allowed(**parameters: str) -> list[tuple[Any, Any]]:
    """(services, ARNs) that the queue's policy allows to send."""
    policy = Template("data", parameters, QUEUE).properties("BroadcastsOnlyOverTls")["PolicyDocument"]
    first, *others = policy["Statement"]
    assert (first["Effect"], first["Principal"]) == ("Deny", "*")
    assert all(
        (each["Effect"], each["Action"], each["Resource"]) == ("Allow", "sqs:SendMessage", "arn:queue")
        for each in others
    )
    return [(each["Principal"]["Service"], each["Condition"]["ArnEquals"]["aws:SourceArn"]) for each in others]


def test_nobody_may_send_who_is_not_named() -> None:
    assert allowed() == []


@pytest.mark.parametrize(
    ("bus", "path"), [("default", ""), ("orders", "orders/"), ("aws.partner/a/b", "aws.partner/a/b/")]
)
def test_the_queue_allows_exactly_the_rule_that_the_other_template_makes(bus: str, path: str) -> None:
    pattern = {"EventPattern": '{"source": ["orders"]}', "EventBus": bus, "Name": "mine"}
    arn = f"arn:aws:events:us-east-1:000000000000:rule/{path}mine-events"
    assert allowed(**pattern) == [("events.amazonaws.com", arn)]
    assert (rule(**pattern, **FIXED)["Name"], rule(**pattern, **FIXED)["EventBusName"]) == ("mine-events", bus)


def test_the_reference_shows_the_statement_for_a_topic() -> None:
    text = (Path(__file__).parents[2] / "docs/reference-publishers.md").read_text().split("### From SNS")[1]
    [shown] = re.findall(r"^```json\n(.*?)^```", text.split("\n## ")[0], re.MULTILINE | re.DOTALL)
    statement = json.loads(shown)
    topic = statement["Condition"]["ArnEquals"]["aws:SourceArn"]
    template = Template("data", {"Senders": topic}, {"Broadcasts.Arn": statement["Resource"]})
    made = template.properties("BroadcastsOnlyOverTls")["PolicyDocument"]["Statement"][-1]
    assert statement["Principal"]["Service"] in made["Principal"]["Service"]
    assert {**made, **statement} == {**statement, "Sid": made["Sid"]}


def test_topics_and_other_rules_may_send_if_they_are_named() -> None:
    topics = "arn:aws:sns:us-east-1:000000000000:prices,arn:aws:events:us-east-1:000000000000:rule/other-events"
    assert allowed(Senders=topics) == [(["events.amazonaws.com", "sns.amazonaws.com"], topics)]
    assert Template("data").parameters["Senders"]["Type"] == "CommaDelimitedList"
