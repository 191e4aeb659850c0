"""The templates hold to AWS's documents: scaling, throttling, policies, keys of roles, alarms, images, costs."""

import json
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import yaml

from local.route_table import ROUTES
from tests.metric_math import evaluate
from tests.templates import NAMES, Template

CHECKOUT = Path(__file__).parents[2]
TOKENS = {"TokenIssuer": "https://issuer.example/", "TokenAudience": "gatecast", "TokenSecretArn": "arn:secret"}
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


def test_the_rates_of_the_routes_are_in_the_order_that_the_parameter_describes() -> None:
    api = Template("api", {"RouteRates": "1,2,3,4,5,6,7,8,9,10"})
    description = " ".join(api.parameters["RouteRates"]["Description"].split())
    (named,) = re.findall(r"of the routes (.+?), in this order", description)
    order = re.split(", | and ", named)
    settings = api.properties("Stage")["RouteSettings"]
    assert [settings[route] for route in order] == [
        {"ThrottlingRateLimit": str(rate), "ThrottlingBurstLimit": str(rate)} for rate in range(1, 11)
    ]


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


# Roles


def leading_keys(template: Template, role: str) -> Iterator[tuple[str, str]]:
    """(action, pattern of partition keys) of a role's statements on the table; `*` where any key is allowed."""
    attached = [each for each in template.of_type("AWS::IAM::Policy").values() if f"${{{role}}}" in each["Roles"]]
    for policy in [*template.properties(role).get("Policies", []), *attached]:
        for statement in policy["PolicyDocument"]["Statement"]:
            actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
            condition = statement.get("Condition", {}).get("ForAllValues:StringLike", {})
            for action in (each for each in actions if each.startswith("dynamodb:")):
                yield from ((action, pattern) for pattern in condition.get("dynamodb:LeadingKeys", ["*"]))


@pytest.mark.parametrize("name", NAMES)
def test_a_condition_on_keys_is_not_true_of_calls_without_keys(name: str) -> None:
    """ForAllValues is true where the key of the condition is absent."""
    resources = Template(name).source["Resources"].values()
    conditional = [each for resource in resources for each in conditions(resource)]
    assert all(each["Null"] == {"dynamodb:LeadingKeys": "false"} for each in conditional)
    assert bool(conditional) == (name in {"api", "data", "http", "worker"})


def conditions(value: Any) -> Iterator[dict[str, Any]]:
    """The conditions with set operators, wherever they are."""
    match value:
        case {"Condition": dict(condition), **others}:
            if any(operator.startswith("ForA") for operator in condition):
                yield condition
            yield from conditions(others)
        case dict():
            for each in value.values():
                yield from conditions(each)
        case list():
            for each in value:
                yield from conditions(each)


def test_no_function_writes_settings_or_progress_and_publish_writes_counters_alone() -> None:
    api = Template("api", {**TOKENS, "PingFunction": "yes"})
    writes = {"PutItem", "UpdateItem", "DeleteItem", "BatchWriteItem"}
    written = {
        role: {pattern for action, pattern in leading_keys(api, role) if action.partition(":")[2] in writes}
        for role in api.of_type("AWS::IAM::Role")
    }
    for key in ("settings#*", "settings#lobby", "broadcast#lobby id"):
        assert not [role for role, patterns in written.items() if any(fnmatchcase(key, each) for each in patterns)]
    assert written["PublishRole"] == written["DefaultRole"] == written["PingRole"] == {"limit#*"}
    assert written["MembersRole"] == {"limit#*"}
    assert written["CountRole"] == {"limit#*", "count#*"}
    assert written["AuthorizeRole"] == set()
    assert not {action for role in written for action, pattern in leading_keys(api, role) if pattern == "*"}


def test_few_functions_write_to_histories_and_presence() -> None:
    """Keys of partitions are all that a policy can tell apart: join may write a head, so it could write a message."""
    api = Template("api", TOKENS)
    allowed = {
        (action.partition(":")[2], pattern, role)
        for role in api.of_type("AWS::IAM::Role")
        for action, pattern in leading_keys(api, role)
    }
    of_streams = {(action, role) for action, pattern, role in allowed if pattern == "stream#*"}
    assert {each for each in of_streams if each[0] not in {"GetItem", "BatchGetItem", "Query"}} == {
        ("PutItem", "JoinRole"),
        ("PutItem", "HistoryRole"),
    }
    assert {each[::2] for each in allowed if each[1] == "presence#*"} == {
        ("PutItem", "JoinRole"),
        ("Query", "JoinRole"),
        ("Query", "MembersRole"),
        ("DeleteItem", "LeaveRole"),
        ("BatchWriteItem", "DisconnectRole"),
    }


def test_the_worker_writes_no_settings_and_any_key_only_with_claims() -> None:
    allowed = set(leading_keys(Template("worker"), "TaskRole"))
    assert {action for action, pattern in allowed if pattern == "*"} == {"dynamodb:PartiQLInsert"}
    assert {action for action, pattern in allowed if pattern == "settings#*"} == {"dynamodb:BatchGetItem"}


@pytest.mark.parametrize(("reserved", "expected"), [("0", None), ("20", "20")])
def test_executions_can_be_reserved_for_the_authorizer(reserved: str, expected: str | None) -> None:
    functions = Template("api", {**TOKENS, "AuthorizerConcurrency": reserved}).of_type("AWS::Lambda::Function")
    found = {name: each.get("ReservedConcurrentExecutions") for name, each in functions.items()}
    assert found.pop("Authorize") == expected
    assert set(found.values()) == {None}, "they share what the account has"


# Images


def test_the_collector_knows_its_region() -> None:
    containers = Template("worker", COLLECTING).properties("Task")["ContainerDefinitions"]
    (collector,) = (each for each in containers if each["Name"] == "collector")
    assert collector["Environment"] == [{"Name": "AWS_REGION", "Value": "us-east-1"}]


@pytest.mark.parametrize("parameter", ["Image", "CollectorImage"])
def test_an_image_is_given_by_digest_or_version(parameter: str) -> None:
    definition = Template("worker").parameters[parameter]
    pattern, image = definition["AllowedPattern"], "registry.example:5000/team/image"
    for given in (f"{image}@sha256:{'a' * 64}", f"{image}:v0.50.0@sha256:{'a' * 64}", f"{image}:v0.50.0"):
        assert re.fullmatch(pattern, given)
    for given in (image, f"{image}:latest", f"{image}:", f"{image}@sha256:abc", "image"):
        assert not re.fullmatch(pattern, given)
    assert re.fullmatch(pattern, definition.get("Default", f"{image}:v1"))


def test_the_base_image_has_a_version() -> None:
    bases = re.findall(r"^ARG BASE=(\S+)$", (CHECKOUT / "Dockerfile").read_text(), re.MULTILINE)
    assert bases
    assert all(re.fullmatch(r"[\w./-]+:\d[\w.-]*(@sha256:[0-9a-f]{64})?", base) for base in bases)


# Costs


def fixed_costs() -> dict[str, tuple[str, str]]:
    """(formula, USD) by the first words of the row."""
    section = (CHECKOUT / "docs" / "deploy.md").read_text().split("| fixed costs per month |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines()[2:]]
    return {name: (formula, usd) for name, formula, usd in rows}


def test_the_fixed_costs_are_what_their_formulas_say() -> None:
    rows = fixed_costs()
    *items, total = rows.items()
    amounts = {}
    for name, (formula, usd) in items:
        if formula:
            value = eval(re.sub(r"( /)? [Mh]\b", "", formula.replace("×", "*")), {"__builtins__": {}})  # noqa: S307 - ours
            assert f"{value:.2f}" == usd, name
        amounts[name] = float(usd.removeprefix("about "))
    gateway, addresses = (next(each for each in amounts if each.startswith(start)) for start in ("NAT", "… or"))
    everything = sum(amounts.values())
    private, public = everything - amounts[addresses], everything - amounts[gateway]
    assert total[1][1] == f"**about {private:.0f}; {public:.0f}**"


def test_the_fixed_costs_count_the_metrics_and_alarms_of_the_templates() -> None:
    rows = fixed_costs()
    observe = Template("observe", {"Name": "mine"})
    alarms = [len(each.get("Metrics", [0, 0])) - 1 for each in observe.of_type("AWS::CloudWatch::Alarm").values()]
    metrics = scaling_policy()["CustomizedMetricSpecification"]["Metrics"]
    of_scaling = 2 * (1 + sum("MetricStat" in each for each in metrics))  # target tracking: one for out, one for in
    (named,) = (name for name in rows if name.startswith("alarms"))
    one, ten = alarms.count(1), alarms.count(10)
    assert named == f"alarms: {one} of one metric, {ten} of 10 metrics, 4 of scaling ({of_scaling} metrics)"
    assert max(alarms) == 10, "as many as CloudWatch allows in one alarm"
    assert rows[named][0] == f"{sum(alarms) + of_scaling} × 0.10"
    collected = sum(map(series, chosen_metrics(observe)))
    assert rows["metrics of the workers in CloudWatch"][0] == f"{collected} × 0.30"
    assert f"gets the {collected} that" in observe.parameters["Metrics"]["Description"]
    assert f"({collected * 0.3:.2f} USD per month)" in observe.parameters["Metrics"]["Description"]


def chosen_metrics(observe: Template) -> list[str]:
    config = yaml.safe_load(observe.properties("CollectorConfig")["Value"])
    (job,) = config["receivers"]["prometheus/chosen"]["config"]["scrape_configs"]
    prefix, _, names = job["metric_relabel_configs"][0]["regex"].strip(")").partition("(")
    return [prefix + name for name in names.split("|")]


def series(metric: str) -> int:
    """How many series a metric has: the values of its label, as the operators' reference lists them."""
    reference = (CHECKOUT / "docs" / "reference-operators.md").read_text()
    (labels,) = re.findall(rf"^\| `{metric}` \| \w+ \| (.*?) \|", reference, re.MULTILINE)
    return len(labels.partition(":")[2].split(",")) if labels.strip() else 1
