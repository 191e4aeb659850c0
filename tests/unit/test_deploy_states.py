"""What the deploy script does with stacks in every state, and with what an earlier deployment left."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import botocore
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError

from deploy.ecs import __main__ as script
from deploy.ecs.stacks import TEMPLATES, DeployError, Stacks
from deploy.ecs.states import STATUSES, Action, Status, action, way_out
from gatecast.room_settings import SettingsItem
from gatecast.table import SETTINGS_SK, key, settings_pk
from local import resources
from tests.templates import Template

CLOUDFORMATION = Path(botocore.__file__).parent / "data" / "cloudformation"


def all_states() -> list[str]:
    """Every state that CloudFormation has, according to the SDK's model of it."""
    import gzip  # noqa: PLC0415 - the models are compressed in some versions only

    (folder,) = CLOUDFORMATION.iterdir()
    (model,) = folder.glob("service-2.json*")
    data = gzip.decompress(model.read_bytes()) if model.suffix == ".gz" else model.read_bytes()
    states: list[str] = json.loads(data)["shapes"]["StackStatus"]["enum"]
    return states


def test_the_states_are_those_of_cloudformation() -> None:
    assert set(STATUSES) == set(all_states())


@pytest.mark.parametrize("status", STATUSES)
def test_every_state_is_waited_for_updated_replaced_or_explained(status: Status) -> None:
    waits = status.endswith("_IN_PROGRESS") and status != "REVIEW_IN_PROGRESS"
    assert (action(status) is Action.WAIT) == waits
    unclear = status.endswith("_FAILED") or action(status) is Action.REPLACE or status == "UPDATE_ROLLBACK_COMPLETE"
    assert bool(way_out("gatecast-data", status, ["Table"])) == unclear
    assert "{" not in way_out("gatecast-data", status, [])


class CloudFormation:
    """A stack that goes through these states, one per call, and then stays in the last one. None: it does not exist."""

    def __init__(self, *statuses: str | Exception | None, events: Sequence[dict[str, str]] = ()) -> None:
        self.statuses = list(statuses)
        self.calls: list[str] = []
        self.rejection: ClientError | None = None
        self._events = list(events)

    def get_template_summary(self, **_: str) -> dict[str, Any]:
        return {"Parameters": []}

    def describe_stacks(self, **_: str) -> dict[str, Any]:
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if isinstance(status, Exception):
            raise status
        if status is None:
            raise client_error("ValidationError", "Stack with id gatecast-data does not exist")
        return {"Stacks": [{"StackStatus": status}]}

    def describe_stack_events(self, NextToken: str = "0", **_: str) -> dict[str, Any]:  # noqa: N803
        page = int(NextToken)  # of one event
        more = {"NextToken": str(page + 1)} if page + 1 < len(self._events) else {}
        return {"StackEvents": self._events[page : page + 1], **more}

    def create_stack(self, **_: Any) -> None:
        self._call("create")

    def update_stack(self, **_: Any) -> None:
        self._call("update")

    def delete_stack(self, **_: Any) -> None:
        self._call("delete")

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.rejection:
            raise self.rejection


def client_error(code: str, message: str = "", status: int = 400) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}},
        "Call",
    )


def event(resource: str, status: str, reason: str = "") -> dict[str, str]:
    return {
        "LogicalResourceId": resource,
        "ResourceStatus": status,
        "ResourceStatusReason": reason,
        "ResourceType": "AWS::SQS::Queue",
    }


def deploy_data(cloudformation: CloudFormation) -> list[str]:
    """Deploy the stack `data`. Returns what was printed."""
    printed: list[str] = []
    Stacks(cloudformation, "gatecast", say=printed.append, poll_seconds=0).deploy("data", {})
    return printed


@pytest.mark.parametrize(
    ("statuses", "calls"),
    [
        ([None, "CREATE_IN_PROGRESS", "CREATE_COMPLETE"], ["create"]),
        (["UPDATE_ROLLBACK_COMPLETE", "UPDATE_IN_PROGRESS", "UPDATE_COMPLETE"], ["update"]),
        (["UPDATE_FAILED", "UPDATE_COMPLETE"], ["update"]),
        (["IMPORT_ROLLBACK_COMPLETE", "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS", "UPDATE_COMPLETE"], ["update"]),
        (["ROLLBACK_COMPLETE", "DELETE_IN_PROGRESS", None, "CREATE_COMPLETE"], ["delete", "create"]),
        (["DELETE_FAILED", None, "CREATE_COMPLETE"], ["delete", "create"]),
        (["REVIEW_IN_PROGRESS", None, "CREATE_COMPLETE"], ["delete", "create"]),
        (["UPDATE_ROLLBACK_IN_PROGRESS", "UPDATE_ROLLBACK_COMPLETE", "UPDATE_COMPLETE"], ["update"]),
        (["DELETE_IN_PROGRESS", None, "CREATE_COMPLETE"], ["create"]),
    ],
)
def test_a_stack_is_brought_on_from_every_state(statuses: list[str | None], calls: list[str]) -> None:
    cloudformation = CloudFormation(*statuses)
    printed = deploy_data(cloudformation)
    assert cloudformation.calls == calls
    in_progress = action(statuses[0]) is Action.WAIT  # type: ignore[arg-type]
    assert [line for line in printed if "waiting" in line] == [
        f"data: waiting for an operation that is in progress ({statuses[0]})"
    ] * in_progress


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([None, "CREATE_FAILED"], "deploy again: that first deletes"),
        (["CREATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE"], "has restored the previous version"),
        (["CREATE_COMPLETE", "UPDATE_FAILED"], "rollback-stack --stack-name gatecast-data"),
        (["DELETE_FAILED"], "delete-stack --stack-name gatecast-data --retain-resources Table Broadcasts"),
        (["CREATE_COMPLETE", "IMPORT_ROLLBACK_FAILED"], "ask AWS Support"),
        (["CREATE_COMPLETE", None], "was deleted while it was deployed"),
        (["SPLIT_COMPLETE"], "is in the state SPLIT_COMPLETE, which this script does not know"),
    ],
)
def test_a_failure_is_printed_with_its_way_out(statuses: list[str | None], expected: str) -> None:
    events = [event("Broadcasts", "DELETE_FAILED"), event("Table", "DELETE_FAILED")]
    with pytest.raises(DeployError) as error:
        deploy_data(CloudFormation(*statuses, events=events))
    assert expected in str(error.value)


def test_only_resources_that_block_the_rollback_are_skipped() -> None:
    """CloudFormation rejects the names of others, such as the one that made the update fail."""
    events = [
        event("gatecast-data", "UPDATE_ROLLBACK_FAILED"),
        event("Broadcasts", "UPDATE_FAILED", "it was deleted by hand"),
        event("gatecast-data", "UPDATE_ROLLBACK_IN_PROGRESS"),
        event("Table", "UPDATE_FAILED", "Resource update cancelled"),
        event("RedrivePolicy", "UPDATE_FAILED", "a mistake"),
        event("gatecast-data", "UPDATE_IN_PROGRESS"),
        event("Old", "CREATE_FAILED", "long ago"),
    ]
    with pytest.raises(DeployError) as error:
        deploy_data(CloudFormation("UPDATE_ROLLBACK_FAILED", events=events))
    lines = str(error.value).splitlines()
    assert lines[:3] == [
        "data: UPDATE_ROLLBACK_FAILED",
        "  RedrivePolicy (AWS::SQS::Queue): a mistake",
        "  Broadcasts (AWS::SQS::Queue): it was deleted by hand",
    ]
    assert "  aws cloudformation continue-update-rollback --stack-name gatecast-data" in lines
    assert lines[-1].endswith("--stack-name gatecast-data --resources-to-skip Broadcasts")


@pytest.mark.parametrize(
    ("rejection", "message"),
    [
        (
            client_error("ValidationError", "Parameter Queue is wrong"),
            "data: CloudFormation rejects the stack: Parameter",
        ),
        (client_error("LimitExceededException", "2000 stacks"), "data: CloudFormation rejects the stack: 2000"),
        (client_error("AlreadyExistsException", "exists"), "another deployment of it has just started"),
        (client_error("ValidationError", "Stack x is in UPDATE_IN_PROGRESS state and can not be updated"), "another"),
    ],
)
def test_what_cloudformation_rejects_is_explained(rejection: ClientError, message: str) -> None:
    for status in (None, "CREATE_COMPLETE"):
        cloudformation = CloudFormation(status)
        cloudformation.rejection = rejection
        with pytest.raises(DeployError, match=message):
            deploy_data(cloudformation)


def test_a_stack_without_changes_is_left_unchanged() -> None:
    cloudformation = CloudFormation("CREATE_COMPLETE")
    cloudformation.rejection = client_error("ValidationError", "No updates are to be performed.")
    assert deploy_data(cloudformation) == ["data: unchanged"]


@pytest.mark.parametrize(
    "outage",
    [
        EndpointConnectionError(endpoint_url="https://x"),
        ReadTimeoutError(endpoint_url="https://x"),
        client_error("Throttling"),
        client_error("RequestLimitExceeded"),
        client_error("InternalFailure", status=500),
    ],
)
def test_an_outage_of_cloudformation_is_waited_for(outage: Exception) -> None:
    printed = deploy_data(CloudFormation(None, outage, outage, "CREATE_IN_PROGRESS", "CREATE_COMPLETE"))
    assert len([line for line in printed if "does not respond, retrying" in line]) == 1
    assert printed[-1].startswith("data: created")


def test_calls_without_permission_end_the_deployment() -> None:
    with pytest.raises(ClientError, match="AccessDenied"):
        deploy_data(CloudFormation(None, client_error("AccessDenied"), "CREATE_COMPLETE"))


def test_calls_are_retried_more_often_than_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    sessions: list[Any] = []
    monkeypatch.setattr(script, "deploy", lambda session, _values: sessions.append(session))
    monkeypatch.setattr("botocore.client.BaseClient._make_api_call", lambda *_: {"Account": "1", "Arn": "a/b"})
    script._run("deploy", {"Region": "us-east-1"}, confirmed=False)
    retries = sessions[0].client("cloudformation").meta.config.retries
    assert (retries["mode"], retries["total_max_attempts"]) == ("standard", 10)


def test_templates_are_small_enough_to_be_sent_with_a_call() -> None:
    for name in script.ORDER:
        assert len((TEMPLATES / f"{name}.yaml").read_bytes()) <= 51_200, "CloudFormation's limit for TemplateBody"


# Queues and code that an earlier deployment left


class NoQueue(Exception):
    pass


class Sqs:
    exceptions = SimpleNamespace(QueueDoesNotExist=NoQueue)

    def __init__(self, *names: str) -> None:
        self._names = names

    def get_queue_url(self, QueueName: str) -> dict[str, str]:  # noqa: N803
        if QueueName not in self._names:
            raise NoQueue
        return {"QueueUrl": f"https://sqs/{QueueName}"}


@pytest.mark.parametrize(
    ("status", "current", "kind", "kept", "rejected"),
    [
        ("CREATE_COMPLETE", "gatecast-broadcasts", "standard", ["gatecast-broadcasts"], False),
        ("CREATE_COMPLETE", "gatecast-broadcasts", "fifo", [], False),
        ("CREATE_COMPLETE", "gatecast-broadcasts.fifo", "standard", ["gatecast-broadcasts"], True),
        ("CREATE_COMPLETE", "gatecast-broadcasts", "fifo", ["gatecast-dead-letters.fifo"], True),
        ("CREATE_FAILED", "", "fifo", ["gatecast-broadcasts.fifo"], False),  # what failed is removed first
        (None, "", "fifo", ["gatecast-broadcasts.fifo"], True),  # kept when the type changed, before `destroy`
        (None, "", "fifo", ["gatecast-broadcasts"], False),
    ],
)
def test_a_kept_queue_whose_name_is_needed_is_named(
    status: str | None, current: str, kind: str, kept: list[str], rejected: bool
) -> None:
    session = SimpleNamespace(client=lambda _name: Sqs(*kept), region_name="us-east-1")
    made = script.Deployment(session, {"Queue": kind})
    outputs = {"QueueName": current} if current else {}
    made.stacks = SimpleNamespace(status=lambda _: status, outputs=lambda _: outputs)  # type: ignore[assignment]
    if rejected:
        with pytest.raises(DeployError, match=rf"aws sqs delete-queue --queue-url https://sqs/{kept[0]}"):
            made._check_queue_names()
    else:
        made._check_queue_names()


def test_code_does_not_expire_because_rollbacks_read_it() -> None:
    (rule,) = Template("foundation").properties("Code")["LifecycleConfiguration"]["Rules"]
    assert set(rule) == {"Status", "AbortIncompleteMultipartUpload"}


class DynamoDb:
    exceptions = SimpleNamespace(ConditionalCheckFailedException=KeyError)

    def __init__(self, *, settings: bool = False) -> None:
        self.items: list[dict[str, Any]] = []
        self._settings = settings

    def get_item(self, **_: Any) -> dict[str, Any]:
        return {"Item": {}} if self._settings else {}

    def put_item(self, **put: Any) -> None:
        assert put["ConditionExpression"] == "attribute_not_exists(pk)"
        if self._settings:
            raise KeyError
        self.items.append(put["Item"])


@pytest.mark.parametrize(
    ("api", "settings", "written", "hint"),
    [
        (None, False, 1, False),
        (None, True, 0, False),
        ("CREATE_COMPLETE", False, 0, True),
        ("CREATE_COMPLETE", True, 0, False),
    ],
)
def test_all_connections_are_spread_before_there_is_an_api(
    api: str | None, settings: bool, written: int, hint: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    dynamodb = DynamoDb(settings=settings)
    session = SimpleNamespace(client=lambda name: dynamodb if name == "dynamodb" else None, region_name="us-east-1")
    made = script.Deployment(session, {"TableName": "gatecast"})
    made.stacks = SimpleNamespace(status=lambda _: api)  # type: ignore[assignment]
    made._write_settings_of_all()
    assert len(dynamodb.items) == written
    for item in dynamodb.items:
        assert {name: item[name] for name in ("pk", "sk")} == key(settings_pk("@all"), SETTINGS_SK)
        assert SettingsItem.from_item(item) == SettingsItem(16, 16)
    assert ("@all has one shard" in capsys.readouterr().out) == hint


def test_the_local_stack_spreads_all_connections_like_a_deployment() -> None:
    assert resources.SHARDS_OF_ALL == script.SHARDS_OF_ALL
