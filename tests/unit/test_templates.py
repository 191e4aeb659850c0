"""The CloudFormation templates are consistent with each other, the code and docker-compose.yml."""

import ast
import importlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from deploy.ecs import artifacts
from deploy.ecs.__main__ import ORDER
from gatecast.emulator.integration import Mock
from local.resources import MAX_RECEIVE_COUNT
from local.route_table import ROUTES
from routes import handlers
from routes.environment import OPEN_ACCESS
from routes.metrics import Invocation
from tests.compose import services
from tests.templates import FOLDER, NAMES, Template
from worker.observe.health import Health
from worker.observe.metrics import _GAUGES, Metrics
from worker.open_files import RESERVED_FILES
from worker.settings import ConfigurationError, Settings, SlowClients

CHECKOUT = Path(__file__).parents[2]
FROM_THE_SCRIPT = {"CodeKey", "Image"}
"""Parameters that the deploy script sets to what it built."""
COLLECTING = {"CollectorConfigArn": "arn:aws:ssm:us-east-1:000000000000:parameter/gatecast/collector"}
OPEN = {"Authorizer": OPEN_ACCESS}
WITH_TOKENS = {"TokenIssuer": "https://issuer.example/", "TokenAudience": "gatecast", "TokenSecretArn": "arn:secret"}


def worker_container(**parameters: str) -> dict[str, Any]:
    containers = Template("worker", parameters).properties("Task")["ContainerDefinitions"]
    return next(each for each in containers if each["Name"] == "worker")


def variables(container: Mapping[str, Any]) -> dict[str, str]:
    return {each["Name"]: str(each["Value"]) for each in container["Environment"]}


def statements(template: Template) -> Iterator[tuple[str, dict[str, Any]]]:
    """(resource name, statement) for all identity policies."""
    for name, resource in template.resources.items():
        properties = resource.get("Properties", {})
        documents = [policy["PolicyDocument"] for policy in properties.get("Policies", [])]
        if resource["Type"] in {"AWS::IAM::Policy", "AWS::IAM::ManagedPolicy"}:
            documents.append(properties["PolicyDocument"])
        for document in documents:
            yield from ((name, statement) for statement in document["Statement"])


def as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


# Consistency of the templates with each other


def test_a_parameter_has_a_default_or_is_an_output_of_an_earlier_stack() -> None:
    assert set(ORDER) == set(NAMES)
    known = set(FROM_THE_SCRIPT)
    for name in ORDER:
        template = Template(name)
        needed = {key for key, each in template.parameters.items() if "Default" not in each}
        assert needed <= known, f"{name} needs {needed - known}"
        known |= template.outputs.keys()


def test_a_parameter_has_the_same_definition_in_all_templates() -> None:
    seen: dict[str, dict[str, Any]] = {}
    for name in NAMES:
        for key, each in Template(name).parameters.items():
            facts = {fact: each.get(fact) for fact in ("Default", "AllowedValues")}
            assert seen.setdefault(key, facts) == facts, f"{key} of {name}"


def test_names_used_across_stacks_match() -> None:
    observe, worker, api = Template("observe", COLLECTING), Template("worker", COLLECTING), Template("api", WITH_TOKENS)
    (few_tasks,) = (
        each for each in observe.of_type("AWS::CloudWatch::Alarm").values() if each.get("Namespace") == "AWS/ECS"
    )
    names = {each["Name"]: each["Value"] for each in few_tasks["Dimensions"]}
    assert names["ServiceName"] == worker.properties("Service")["ServiceName"]
    assert names["ClusterName"] == worker.properties("OwnedCluster")["ClusterName"]
    group = observe.properties("MetricsLogs")["LogGroupName"]
    assert worker.properties("CollectorPolicy")["PolicyDocument"]["Statement"][0]["Resource"].endswith(
        f":log-group:{group}:*"
    )
    functions = {each["FunctionName"] for each in api.of_type("AWS::Lambda::Function").values()}
    watched = observe.properties("FunctionErrors")["Metrics"][1:]
    assert {each["MetricStat"]["Metric"]["Dimensions"][0]["Value"] for each in watched} == functions


# Consistency of the templates with the code


REQUIRED_BY_THE_WORKER = {"GATECAST_QUEUE_URL", "GATECAST_TABLE", "GATECAST_CONNECTIONS_ENDPOINT"}


def test_the_worker_accepts_the_environment_of_its_task() -> None:
    given = {
        "QueueUrl": "https://sqs.us-east-1.amazonaws.com/000000000000/gatecast-broadcasts",
        "DeadLetterQueueUrl": "https://sqs.us-east-1.amazonaws.com/000000000000/gatecast-dead-letters",
        "ReceiptsQueueUrl": "https://sqs.us-east-1.amazonaws.com/000000000000/gatecast-receipts",
        "TableName": "gatecast",
        "PayloadBucket": "gatecast-data-payloads-1a2b3c",
        "ConnectionsEndpoint": "https://abc.execute-api.us-east-1.amazonaws.com/live",
    }
    container = worker_container(**given)
    settings = Settings.from_environ(variables(container))
    assert settings.queue_url == given["QueueUrl"]
    assert settings.dead_letter_queue_url == given["DeadLetterQueueUrl"]
    assert settings.receipts_queue_url == given["ReceiptsQueueUrl"]
    assert settings.table == given["TableName"]
    assert settings.payload_bucket == given["PayloadBucket"]
    assert settings.connections_endpoint == given["ConnectionsEndpoint"]
    defaults = Settings.from_environ(
        {name: value for name, value in variables(container).items() if name in REQUIRED_BY_THE_WORKER}
    )
    differ = {name for name in Settings.__slots__ if getattr(settings, name) != getattr(defaults, name)}
    assert differ == {"dead_letter_queue_url", "receipts_queue_url", "payload_bucket", "drain_seconds"}
    assert settings.drain_seconds + 5 <= container["StopTimeout"] <= 120


def test_the_limit_on_open_files_is_enough_for_every_number_of_posts_in_flight() -> None:
    needed = 10_000 + RESERVED_FILES
    with pytest.raises(ConfigurationError):
        Settings.from_environ({**variables(worker_container()), "GATECAST_MAX_IN_FLIGHT": "10001"})
    [limit] = worker_container()["Ulimits"]
    assert limit["Name"] == "nofile"
    assert needed <= limit["SoftLimit"] <= limit["HardLimit"]
    assert services()["worker"].definition["ulimits"]["nofile"] >= needed


def test_the_allowed_values_for_slow_clients_match_the_worker() -> None:
    parameter = Template("worker").parameters["SlowClients"]
    assert set(parameter["AllowedValues"]) == set(get_args(SlowClients))
    for value in parameter["AllowedValues"]:
        assert variables(worker_container(SlowClients=value))["GATECAST_SLOW_CLIENTS"] == value


@pytest.mark.parametrize("where", ["ECS", "Compose"])
def test_the_worker_is_given_no_unknown_variable(where: str) -> None:
    optional = {"Members": "{}", "MembersTableArn": "arn:aws:dynamodb:eu-west-1:000000000000:table/connections"}
    environment = variables(worker_container(**optional)) if where == "ECS" else services()["worker"].environment
    known = {f"GATECAST_{name.upper()}" for name in Settings.__slots__}
    given = {name for name in environment if name.startswith("GATECAST_")}
    assert given <= known
    assert given >= REQUIRED_BY_THE_WORKER
    if where == "ECS":
        assert given == known, "every variable can be set in the template"
    assert {name for name in environment if not name.startswith(("GATECAST_", "AWS_"))} <= set(
        services()["worker"].image.environment
    )


def test_the_functions_have_the_variables_that_their_code_reads() -> None:
    read: dict[str, set[str]] = {}
    for path in (CHECKOUT / "routes").glob("*.py"):
        constants = (node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
        names = {each for each in constants if isinstance(each, str) and re.fullmatch(r"GATECAST_[A-Z_]+", each)}
        read.setdefault("authorizer" if path.name == "authorizer.py" else "handlers", set()).update(names)
    given: dict[str, set[str]] = {"authorizer": set(), "handlers": set()}
    for secret in ({}, {"TokenSecretArn": "", "TokenJwksUrl": "https://issuer.example/jwks"}):
        functions = Template("api", {**WITH_TOKENS, **secret}).of_type("AWS::Lambda::Function").values()
        for function in functions:
            module = function["Handler"].split(".")[1]
            variables = function.get("Environment", {}).get("Variables", {})
            assert {"POWERTOOLS_METRICS_DISABLED", "POWERTOOLS_SERVICE_NAME"} <= variables.keys()
            given[module] |= {name for name in variables if name.startswith("GATECAST_")}
    assert given == read


@pytest.mark.parametrize("ping_function", ["no", "yes"])
def test_each_route_has_an_existing_integration_and_a_response_if_it_should(ping_function: str) -> None:
    api = Template("api", {**WITH_TOKENS, "PingFunction": ping_function})
    functions, integrations = api.of_type("AWS::Lambda::Function"), api.of_type("AWS::ApiGatewayV2::Integration")
    with_response = {each["RouteId"] for each in api.of_type("AWS::ApiGatewayV2::RouteResponse").values()}
    routes = api.of_type("AWS::ApiGatewayV2::Route")
    assert {route["RouteKey"] for route in routes.values()} == set(ROUTES)
    for name, route in routes.items():
        integration = integrations[re.sub(r"integrations/\$\{(.*)\}", r"\1", route["Target"])]
        ours = ROUTES[route["RouteKey"]]
        is_mock = integration["IntegrationType"] == "MOCK"
        assert is_mock == (isinstance(ours.integration, Mock) and ping_function == "no")
        if not is_mock:
            (function,) = re.findall(r"functions/\$\{(\w+)\.Arn\}/invocations", integration["IntegrationUri"])
            module, _, handler = functions[function]["Handler"].rpartition(".")
            code = handlers.ping if isinstance(ours.integration, Mock) else ours.integration
            assert getattr(importlib.import_module(module), handler) is code
        assert (f"${{{name}}}" in with_response) == (route.get("RouteResponseSelectionExpression") == "$default")
        assert (f"${{{name}}}" in with_response) == ours.response
    allowed = {each["SourceArn"].rpartition("/")[2] for each in api.of_type("AWS::Lambda::Permission").values()}
    assert allowed == {*ROUTES, "${TokenAuthorizer}"} - ({"ping"} if ping_function == "no" else set())
    for function in functions.values():
        assert function["Runtime"] == f"python{artifacts.PYTHON}"
    authorizer = importlib.import_module("routes.authorizer")
    assert functions["Authorize"]["Handler"] == f"{authorizer.__name__}.handler"
    assert callable(authorizer.handler)


def test_connecting_requires_a_token_unless_open_access_is_set_explicitly() -> None:
    template = Template("api", WITH_TOKENS)
    assert template.properties("ConnectRoute")["AuthorizationType"] == "CUSTOM"
    assert template.properties("ConnectRoute")["AuthorizerId"] == "${TokenAuthorizer}"
    assert template.properties("TokenAuthorizer")["IdentitySource"] == []
    assert "      IdentitySource: []\n" in template.text
    assert template.parameters["Authorizer"]["AllowedValues"] == ["required", OPEN_ACCESS]
    assert template.parameters["Authorizer"]["Default"] == "required"
    opened = Template("api", OPEN)
    assert opened.properties("ConnectRoute")["AuthorizationType"] == "NONE"
    assert "TokenAuthorizer" not in opened.resources
    assert opened.properties("Connect")["Environment"]["Variables"]["GATECAST_AUTHORIZER"] == OPEN_ACCESS


@pytest.mark.parametrize("queue", ["standard", "fifo"])
def test_the_table_and_queues_match_the_contract(queue: str) -> None:
    data = Template("data", {"Queue": queue})
    table = data.properties("Table")
    assert [(key["AttributeName"], key["KeyType"]) for key in table["KeySchema"]] == [("pk", "HASH"), ("sk", "RANGE")]
    assert table["TimeToLiveSpecification"] == {"AttributeName": "expires_at", "Enabled": True}
    assert table["BillingMode"] == "PAY_PER_REQUEST"
    broadcasts, dead_letters = data.properties("Broadcasts"), data.properties("DeadLetters")
    assert broadcasts["RedrivePolicy"] == {
        "deadLetterTargetArn": "${DeadLetters.Arn}",
        "maxReceiveCount": MAX_RECEIVE_COUNT,
    }
    for each in (broadcasts, dead_letters):
        assert each["MessageRetentionPeriod"] == 14 * 24 * 3600
        assert each["SqsManagedSseEnabled"] is True
        assert each["MaximumMessageSize"] == 1024 * 1024
        assert each["QueueName"].endswith(".fifo") == (queue == "fifo") == ("FifoQueue" in each)
        assert each.get("DeduplicationScope") == ("messageGroup" if queue == "fifo" else None)


def test_receipts_reach_a_bus_if_one_is_named() -> None:
    without = Template("data")
    assert without.properties("Receipts")["MessageRetentionPeriod"] == 14 * 24 * 3600
    assert not without.of_type("AWS::Pipes::Pipe")
    data = Template(
        "data", {"ReceiptsBus": "default"}, {"Receipts.Arn": "arn:receipts", "ReceiptsPipeRole.Arn": "arn:role"}
    )
    bus = "arn:aws:events:us-east-1:000000000000:event-bus/default"
    pipe = data.properties("ReceiptsPipe")
    assert (pipe["Source"], pipe["Target"], pipe["RoleArn"]) == ("arn:receipts", bus, "arn:role")
    allowed = {
        (action, resource)
        for name, statement in statements(data)
        if name == "ReceiptsPipeRole"
        for action in as_list(statement["Action"])
        for resource in as_list(statement["Resource"])
    }
    assert allowed == {
        ("sqs:ReceiveMessage", "arn:receipts"),
        ("sqs:DeleteMessage", "arn:receipts"),
        ("sqs:GetQueueAttributes", "arn:receipts"),
        ("events:PutEvents", bus),
    }


def test_the_worker_is_confined() -> None:
    worker = Template("worker", COLLECTING)
    container = worker_container()
    assert container["ReadonlyRootFilesystem"] is True
    assert container["User"] == services()["worker"].image.user
    assert container["HealthCheck"]["Command"][0] == "CMD"
    compile(container["HealthCheck"]["Command"][-1], "health check", "exec")
    assert "SecurityGroupIngress" not in worker.properties("OutboundOnly")
    assert worker.properties("Service")["DeploymentConfiguration"]["DeploymentCircuitBreaker"] == {
        "Enable": True,
        "Rollback": True,
    }


# Permissions; tests/integration/test_least_privilege.py compares them with what the code does


@pytest.mark.parametrize("name", NAMES)
def test_every_action_has_a_reason_and_every_resource_a_name(name: str) -> None:
    template = Template(name, {**WITH_TOKENS, **COLLECTING, "PrometheusWorkspaceArn": "arn:workspace"})
    for _, statement in statements(template):
        assert not [action for action in as_list(statement["Action"]) if "*" in action]
        if "*" in as_list(statement["Resource"]):
            assert statement["Action"] == "ecr:GetAuthorizationToken"
    assert not re.findall(r"^ +- [a-z-]+:[A-Z][A-Za-z]+$", template.text, re.MULTILINE), "an action without a reason"


def test_the_worker_may_post_to_connections_and_close_them_and_nothing_else() -> None:
    worker = Template("worker", {"StageArn": "arn:stage"})
    managed = [
        resource
        for _, statement in statements(worker)
        if "execute-api:ManageConnections" in as_list(statement["Action"])
        for resource in as_list(statement["Resource"])
    ]
    assert sorted(managed) == ["arn:stage/DELETE/@connections/*", "arn:stage/POST/@connections/*"]


def test_every_skipped_check_has_a_reason() -> None:
    skips = re.findall(r"^ +- (CKV\w+)(.*)$", (FOLDER / ".checkov.yaml").read_text(), re.MULTILINE)
    assert skips
    assert all(re.match(r" # \w+", reason) for _, reason in skips)


# Metrics and the dashboard


def exported() -> set[str]:
    metrics = Metrics(Health())
    metrics.register_gauges(**dict.fromkeys(_GAUGES, lambda: 1.0))
    return set(re.findall(r"^# TYPE (gatecast_\w+) ", metrics.exposition().decode(), re.MULTILINE))


@pytest.mark.parametrize("where", ["cloudwatch", "cloudwatch and prometheus"])
def test_the_collector_takes_exported_metrics_and_all_that_are_used(where: str) -> None:
    observe = Template("observe", {"Metrics": where, "Name": "mine"})
    text = observe.properties("CollectorConfig")["Value"]
    assert len(text.encode()) <= 4096, "the limit of a standard-tier parameter"
    config = yaml.safe_load(text)
    pipelines = config["service"]["pipelines"].values()
    for kind in ("receivers", "processors", "exporters"):
        assert {name for pipeline in pipelines for name in pipeline[kind]} <= config[kind].keys()
    assert (len(pipelines), len(config["exporters"])) == ((1, 1) if where == "cloudwatch" else (2, 2))
    assert config["service"]["extensions"] == [] or config["service"]["extensions"] == ["sigv4auth"]

    (job,) = config["receivers"]["prometheus/chosen"]["config"]["scrape_configs"]
    container = variables(worker_container())
    assert job["static_configs"][0]["targets"] == [
        f"{container['GATECAST_HTTP_HOST']}:{container['GATECAST_HTTP_PORT']}"
    ]
    kept = re.compile(job["metric_relabel_configs"][0]["regex"])
    chosen = {name for name in exported() if kept.fullmatch(name)}
    assert len(chosen) == kept.pattern.count("|") + 1, "every name is an exported metric"
    dimensions = dict(declared_dimensions(config, chosen))
    assert dimensions.keys() == chosen, "every metric taken is declared for CloudWatch"
    for name, given in used_metrics(observe):
        assert tuple(given) == dimensions[name]


def test_the_dashboard_uses_metrics_that_the_routes_emit() -> None:
    dashboard = json.loads(Template("observe", {"Name": "mine"}).properties("Dashboard")["DashboardBody"])
    rows = [row for widget in dashboard["widgets"] for row in widget["properties"]["metrics"]]
    of_routes = [row for row in rows if row[0] == "Gatecast" and not row[1].startswith("gatecast_")]
    services = {
        function["Environment"]["Variables"]["POWERTOOLS_SERVICE_NAME"]
        for function in Template("api", {**WITH_TOKENS, "Name": "mine"}).of_type("AWS::Lambda::Function").values()
    }
    assert {row[1] for row in of_routes} == {
        "ConnectionsOpened", "ConnectionsClosed", "MessagesPublished", "Errors", "Rejected"
    }  # fmt: skip
    for _, name, *dimensions in of_routes:
        assert dimensions[:2] == ["service", *services]
        assert dimensions[2] == "route"
        assert dimensions[3] in {*ROUTES, "authorizer"}
        assert name in Invocation().counts(dimensions[3])


def declared_dimensions(config: Mapping[str, Any], names: set[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for declaration in config["exporters"]["awsemf"]["metric_declarations"]:
        for name in names:
            if any(re.search(selector, name) for selector in declaration["metric_name_selectors"]):
                yield name, tuple(declaration["dimensions"][0])


def used_metrics(observe: Template) -> Iterator[tuple[str, list[str]]]:
    """(metric name, dimensions) for the worker's own metrics that alarms, the dashboard and scaling use."""
    worker = Template("worker", {**COLLECTING, "Name": "mine"})
    for alarm in observe.of_type("AWS::CloudWatch::Alarm").values():
        if alarm.get("Namespace") == "Gatecast":
            yield alarm["MetricName"], [each["Name"] for each in alarm["Dimensions"]]
    for widget in json.loads(observe.properties("Dashboard")["DashboardBody"])["widgets"]:
        for row in widget["properties"]["metrics"]:
            if row[0] == "Gatecast" and row[1].startswith("gatecast_"):
                yield row[1], [each for each in row[2:] if isinstance(each, str)][::2]
    policy = worker.properties("ByAge")["TargetTrackingScalingPolicyConfiguration"]
    for each in policy["CustomizedMetricSpecification"]["Metrics"]:
        metric = each.get("MetricStat", {}).get("Metric", {})
        if metric.get("Namespace") == "Gatecast":
            assert metric["Dimensions"][0]["Value"] == "mine"
            yield metric["MetricName"], [dimension["Name"] for dimension in metric["Dimensions"]]
