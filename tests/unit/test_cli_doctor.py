"""The checks of `gatecast doctor` that need no service, and that each role's permissions are those of its policies."""

import email.utils
import json
from collections.abc import Mapping
from typing import Any

import pytest

from gatecast.cli.doctor import permissions, queues, quotas
from gatecast.cli.doctor.examination import Clock
from gatecast.cli.doctor.findings import Finding, State
from gatecast.cli.doctor.permissions import Role, needs
from gatecast.cli.doctor.variables import find_resources
from tests.publishing_steps import ServiceError
from tests.templates import Template

URL = "https://sqs.eu-west-1.amazonaws.com/123456789012/gatecast"
ARN, DEAD = "arn:aws:sqs:eu-west-1:123456789012:gatecast", "arn:aws:sqs:eu-west-1:123456789012:dead"
MISSPELT = "GATECAST_QUEUE_URL".replace("UE_", "_")


def only(findings: list[Finding], state: State) -> Finding:
    [found] = [finding for finding in findings if finding.state is state]
    return found


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("GATECAST_QUEUE_URL", "", f"GATECAST_QUEUE_URL is missing ({MISSPELT} is set)"),
        ("GATECAST_QUEUE_URL", "gatecast", "'gatecast': no URL of a queue"),
        ("GATECAST_TABLE", "a b", "'a b': no name of a table"),
        ("GATECAST_DEAD_LETTER_QUEUE_URL", "x", "'x': no URL of a queue"),
        ("GATECAST_CONNECTIONS_ENDPOINT", "wss://a/b", "no address of an API"),
        ("GATECAST_CONNECTIONS_ENDPOINT", "https://a/b/@connections", "leave out /@connections"),
        ("GATECAST_CONNECTIONS_ENDPOINT", "https://a.execute-api.eu-west-1.amazonaws.com", "ends in the stage"),
        ("GATECAST_CONNECTIONS_ENDPOINT", "http://example.com/live", "expected https://"),
    ],
)
def test_variables(name: str, value: str, says: str) -> None:
    environ = {
        "GATECAST_QUEUE_URL": URL,
        "GATECAST_TABLE": "gatecast",
        "GATECAST_CONNECTIONS_ENDPOINT": "https://a.execute-api.eu-west-1.amazonaws.com/live",
        MISSPELT: URL,
        name: value,
    }
    resources, findings = find_resources(Role.WORKER, environ)
    finding = only(findings, State.FAILED)
    assert says in finding.what
    assert finding.remedy.startswith("set it to ")
    assert name not in resources


def test_what_a_role_does_not_need_may_be_missing() -> None:
    resources, findings = find_resources(Role.PUBLISHER, {"GATECAST_QUEUE_URL": URL})
    assert resources == {"GATECAST_QUEUE_URL": URL}
    assert [finding.state for finding in findings] == [State.OK]
    _, findings = find_resources(Role.OPERATOR, {"GATECAST_QUEUE_URL": URL})
    assert [finding.state for finding in findings] == [State.FAILED] * 2


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("GATECAST_MAX_POST_PER_SECOND", "GATECAST_MAX_POSTS_PER_SECOND"),
        ("GATECAST_DEADLETTER_QUEUE_URL", "GATECAST_DEAD_LETTER_QUEUE_URL"),
        ("GATECAST_XYZ", "check its name"),
    ],
)
def test_a_variable_that_nothing_reads_is_a_warning(name: str, nearest: str) -> None:
    _, findings = find_resources(Role.PUBLISHER, {"GATECAST_QUEUE_URL": URL, "GATECAST_TOKEN": "", name: "x"})
    assert {finding.state for finding in findings} == {State.OK, State.WARNING}
    finding = only(findings, State.WARNING)
    assert name in finding.what
    assert nearest in finding.remedy


def attributes(target: str | None = DEAD, receives: int = 1_000, **more: str) -> dict[str, str]:
    policy = {"deadLetterTargetArn": target, "maxReceiveCount": receives}
    return {"QueueArn": ARN, **({"RedrivePolicy": json.dumps(policy)} if target else {}), **more}


@pytest.mark.parametrize(
    ("its", "others", "state", "says"),
    [
        (attributes(), {}, State.OK, "standard; after 1,000 receives a message moves to dead"),
        (attributes(None), {}, State.FAILED, "no redrive policy"),
        ({"QueueArn": ARN, "RedrivePolicy": "[]"}, {}, State.FAILED, "no redrive policy"),
        (attributes(ARN), {}, State.FAILED, "names that queue itself"),
        (attributes(), {"QueueArn": ARN}, State.FAILED, "are the same queue"),
        (attributes(), {**attributes(ARN), "QueueArn": DEAD}, State.FAILED, "back to GATECAST_QUEUE_URL"),
        (attributes(receives=3), {}, State.WARNING, "after 3 receives"),
        (attributes(MaximumMessageSize="262144"), {}, State.WARNING, "more than 262,144 bytes"),
    ],
)  # fmt: skip
def test_queues(its: Mapping[str, str], others: Mapping[str, str], state: State, says: str) -> None:
    findings = list(queues.check_attributes(URL, its, others))
    finding = only(findings, state)
    assert says in finding.what
    assert bool(finding.remedy) == (state is not State.OK)


class Response:
    def __init__(self, date: str | None) -> None:
        self.headers = {} if date is None else {"Date": date}


@pytest.mark.parametrize(
    ("ahead", "state", "says"),
    [
        (0, State.OK, "within 60 s"),
        (-59, State.OK, "within 60 s"),
        (3_600, State.FAILED, "is 3,600 s ahead of the services'"),
        (-120, State.FAILED, "is 120 s behind the services'"),
    ],
)
def test_the_clock(ahead: int, state: State, says: str) -> None:
    clock = Clock(lambda: 1_800_000_000.0 + ahead)
    for date in (email.utils.formatdate(1_800_000_000, usegmt=True), None, "yesterday"):
        clock.record(Response(date), parsed={})
    finding = clock.check()
    assert finding.state is state
    assert says in finding.what


def test_a_clock_that_no_response_shows() -> None:
    assert Clock().check().state is State.SKIPPED


class Account:
    def __init__(self, rate: float) -> None:
        self._rate = rate

    def get_account(self) -> dict[str, Any]:
        return {"throttleSettings": {"rateLimit": self._rate, "burstLimit": 5_000}}


def test_the_quota_of_requests() -> None:
    assert quotas.check(Account(10_000.0), {}).state is State.OK
    low = quotas.check(Account(2_500.0), {})
    assert low.state is State.WARNING
    assert "2,500 requests per second" in low.what
    assert "Service Quotas" in low.remedy
    assert quotas.check(Account(2_500.0), {"GATECAST_MAX_POSTS_PER_SECOND": "2000"}).state is State.OK


VARIABLES = {
    "GATECAST_QUEUE_URL": "QueueArn",
    "GATECAST_DEAD_LETTER_QUEUE_URL": "DeadLetterQueueArn",
    "GATECAST_RECEIPTS_QUEUE_URL": "ReceiptsQueueArn",
    "GATECAST_TABLE": "TableArn",
}


def granted(policies: list[Mapping[str, Any]]) -> set[tuple[str, str]]:
    statements = [statement for policy in policies for statement in policy["Statement"]]
    return {
        (action, str(statement["Resource"]))
        for statement in statements
        for action in ([statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"])
    }


def test_the_permissions_of_a_worker_are_those_of_its_role() -> None:
    template = Template("worker", {arn: arn for arn in VARIABLES.values()})
    role = template.properties("TaskRole")
    allowed = granted([policy["PolicyDocument"] for policy in role["Policies"]])
    checked = {(need.action, VARIABLES[need.variable]) for need in needs(Role.WORKER)}
    unchecked = {use for use in allowed if use[1] in VARIABLES.values()} - checked
    assert not unchecked
    assert checked <= allowed


@pytest.mark.parametrize(
    ("role", "names"), [(Role.PUBLISHER, ["PublisherPolicy"]), (Role.OPERATOR, ["OperatorPolicy", "RedrivePolicy"])]
)
def test_the_permissions_of_people_are_those_of_their_policies(role: Role, names: list[str]) -> None:
    arns = {"Broadcasts.Arn": "QueueArn", "DeadLetters.Arn": "DeadLetterQueueArn", "Table.Arn": "TableArn"}
    template = Template("data", attributes=arns)
    allowed = granted([template.properties(name)["PolicyDocument"] for name in names])
    checked = {(need.action, VARIABLES[need.variable]) for need in needs(role)}
    assert checked == {use for use in allowed if use[1] in VARIABLES.values()}


class Rejecting:
    """A client of which every call fails alike."""

    def __init__(self, status: int) -> None:
        self._error = ServiceError(str(status), status)

    def __getattr__(self, method: str) -> Any:
        def call(**_: Any) -> None:
            raise self._error

        return call


@pytest.mark.parametrize(
    ("status", "states", "says"),
    [
        (403, {State.FAILED}, "check AWS_PROFILE"),
        (401, {State.FAILED}, "check AWS_PROFILE"),
        (500, {State.WARNING}, "retry in a minute"),
        (503, {State.WARNING}, "retry in a minute"),
        (400, {State.OK}, ""),
    ],
)
def test_a_status_without_a_code_is_no_permission(status: int, states: set[State], says: str) -> None:
    resources = {"GATECAST_QUEUE_URL": URL, "GATECAST_TABLE": "gatecast"}
    clients = dict.fromkeys(("sqs", "dynamodb"), Rejecting(status))
    findings = list(permissions.check(clients, Role.WORKER, resources))
    assert {finding.state for finding in findings} == states
    assert all(says in finding.remedy for finding in findings)


def test_a_remedy_names_a_policy_of_the_stack() -> None:
    assert set(permissions.POLICIES) == set(Role)
    outputs = Template("data").outputs
    for policy in ("PublisherPolicyArn", "OperatorPolicyArn", "RedrivePolicyArn"):
        assert policy in outputs
