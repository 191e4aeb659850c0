"""What reviews of the templates against AWS's documents found, held: scaling, throttling, policies, alarms, images."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from local.route_table import ROUTES
from tests.metric_math import evaluate
from tests.templates import NAMES, Template

COLLECTING = {"CollectorConfigArn": "arn:aws:ssm:us-east-1:000000000000:parameter/gatecast/collector"}


def scaling_policy() -> dict[str, Any]:
    found: dict[str, Any] = Template("worker", COLLECTING).properties("ByAge")
    configuration: dict[str, Any] = found["TargetTrackingScalingPolicyConfiguration"]
    return configuration


def expressions(value: Any) -> Iterator[str]:
    match value:
        case {"Expression": str(expression), **others}:
            yield expression
            yield from expressions(others)
        case dict():
            for each in value.values():
                yield from expressions(each)
        case list():
            for each in value:
                yield from expressions(each)


@pytest.mark.parametrize(
    ("cuts", "waiting", "age", "expected"),
    [
        (0, 5, 12, 12),
        (0, 5, 300, 60),  # at most twice the target: at most twice the tasks
        (0, 0, 300, 0),  # nothing waits: the age of a broadcast in progress is no reason
        (0, 0, None, 0),
        (3, 5, 300, 30),  # the account throttles: keep the number of tasks
        (3, None, None, 30),
        (None, 5, 300, None),  # whether the account throttles is unknown: no point, so nothing changes
        (None, 0, 0, None),
        (0, None, 300, None),
        (0, 5, None, None),
    ],
)
def test_age_adds_tasks_only_where_tasks_help(
    cuts: int | None, waiting: int | None, age: int | None, expected: int | None
) -> None:
    policy = scaling_policy()
    (expression,) = expressions(policy)
    assert evaluate(expression, {"cuts": cuts, "waiting": waiting, "age": age}) == expected
    assert int(policy["TargetValue"]) == 30


@pytest.mark.parametrize("name", NAMES)
def test_no_expression_fills_missing_points(name: str) -> None:
    """Where the newest samples are late, every evaluation would see the filled value."""
    template = Template(name)
    assert not [each for each in expressions(template.source) if "FILL" in each]
    assert "FILL(" not in template.text


def test_the_routes_limits_add_up_to_the_clients_share() -> None:
    api = Template("api")
    stage = api.properties("Stage")
    assert "DefaultRouteSettings" not in stage, "a default applies to each route, and perhaps to @connections"
    assert stage["RouteSettings"].keys() == ROUTES.keys()
    assert set(api.source["Resources"]["Stage"]["DependsOn"]) == {
        name for name, each in api.source["Resources"].items() if each["Type"] == "AWS::ApiGatewayV2::Route"
    }
    rates = {route: int(each["ThrottlingRateLimit"]) for route, each in stage["RouteSettings"].items()}
    assert sum(rates.values()) == 2_000
    assert all(rates.values())
    assert sum(int(each["ThrottlingBurstLimit"]) for each in stage["RouteSettings"].values()) < 5_000


def test_a_queue_s_policy_names_that_queue_alone() -> None:
    data = Template("data")
    queues = {name for name, each in data.source["Resources"].items() if each["Type"] == "AWS::SQS::Queue"}
    named = []
    for policy in data.of_type("AWS::SQS::QueuePolicy").values():
        (queue,) = policy["Queues"]
        (statement,) = policy["PolicyDocument"]["Statement"]
        assert statement["Resource"] == f"{queue[:-1]}.Arn}}"
        named.append(queue[2:-1])
    assert sorted(named) == sorted(queues)


def test_old_broadcasts_alarm_in_the_queue_and_in_progress() -> None:
    """SQS's own age leaves out messages that were received three times or more."""
    alarms = Template("observe").of_type("AWS::CloudWatch::Alarm")
    ages = {each["MetricName"]: each for each in alarms.values() if "oldest" in each.get("MetricName", "").lower()}
    assert ages.keys() == {"ApproximateAgeOfOldestMessage", "gatecast_oldest_broadcast_age_seconds"}
    assert len({json.dumps([a["Threshold"], a["Period"], a["EvaluationPeriods"]]) for a in ages.values()}) == 1


def test_the_collector_knows_its_region_and_has_a_fixed_version() -> None:
    worker = Template("worker", COLLECTING)
    containers = worker.properties("Task")["ContainerDefinitions"]
    (collector,) = (each for each in containers if each["Name"] == "collector")
    assert collector["Environment"] == [{"Name": "AWS_REGION", "Value": "us-east-1"}]
    image = collector["Image"].rpartition(":")
    assert image[2] != "latest"
    assert image[0]
