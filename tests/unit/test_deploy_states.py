"""What the deploy script does with stacks in every state, and in which zones it puts the tasks."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import botocore
import pytest

from deploy.ecs import __main__ as script
from deploy.ecs.stacks import DeployError, Stacks
from deploy.ecs.states import Action, action, explanation
from deploy.ecs.zones import NoZones, Zone, choose, why_not
from gatecast.table import RoomSettings
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


@pytest.mark.parametrize("status", all_states())
def test_every_state_is_known(status: str) -> None:
    assert action(status) is not Action.EXPLAIN or "continue-update-rollback" in explanation(
        "gatecast-data", status, []
    )
    assert (action(status) is Action.WAIT) == (status.endswith("_IN_PROGRESS") and status != "REVIEW_IN_PROGRESS")


def test_a_state_that_is_new_is_explained() -> None:
    assert action("SPLIT_COMPLETE") is Action.EXPLAIN
    assert "does not know" in explanation("gatecast-data", "SPLIT_COMPLETE", [])


class CloudFormation:
    """A stack that is in one state."""

    def __init__(self, status: str) -> None:
        self.status = status

    def get_template_summary(self, **_: str) -> dict[str, Any]:
        return {"Parameters": []}

    def describe_stacks(self, **_: str) -> dict[str, Any]:
        return {"Stacks": [{"StackStatus": self.status}]}

    def describe_stack_events(self, **_: str) -> dict[str, Any]:
        def event(resource: str, status: str, reason: str = "") -> dict[str, str]:
            return {
                "LogicalResourceId": resource, "ResourceStatus": status, "ResourceStatusReason": reason,
                "ResourceType": "AWS::SQS::Queue",
            }  # fmt: skip

        return {
            "StackEvents": [
                event("gatecast-data", "UPDATE_ROLLBACK_FAILED"),
                event("Broadcasts", "UPDATE_FAILED", "it was deleted by hand"),
                event("Table", "UPDATE_FAILED", "Resource update cancelled"),
                event("gatecast-data", "UPDATE_IN_PROGRESS"),
                event("Old", "CREATE_FAILED", "long ago"),
            ]
        }


def test_a_stuck_rollback_is_explained_with_its_way_out() -> None:
    with pytest.raises(DeployError) as error:
        Stacks(CloudFormation("UPDATE_ROLLBACK_FAILED"), "gatecast", say=lambda _: None).deploy("data", {})
    lines = str(error.value).splitlines()
    assert lines[0] == "data: UPDATE_ROLLBACK_FAILED"
    assert lines[1] == "  Broadcasts (AWS::SQS::Queue): it was deleted by hand"
    assert "  aws cloudformation continue-update-rollback --stack-name gatecast-data" in lines
    assert lines[-1].endswith("--stack-name gatecast-data --resources-to-skip Broadcasts")


# Zones

TOKYO = [Zone(f"ap-northeast-1{letter}", f"apne1-az{number}") for letter, number in zip("acd", (4, 3, 1), strict=True)]
VIRGINIA = [Zone(f"us-east-1{letter}", f"use1-az{number}") for letter, number in zip("abc", (3, 6, 1), strict=True)]


def test_zones_are_chosen_by_their_ids() -> None:
    assert choose("ap-northeast-1", TOKYO, "arm64") == ("ap-northeast-1d", "ap-northeast-1a")
    assert choose("us-east-1", VIRGINIA, "arm64") == ("us-east-1c", "us-east-1b")
    assert choose("us-east-1", VIRGINIA, "x86_64") == ("us-east-1c", "us-east-1a")
    assert choose("eu-west-1", reversed(VIRGINIA), "arm64") == choose("eu-west-1", VIRGINIA, "arm64")


def test_a_zone_is_rejected_with_the_reason() -> None:
    assert why_not("ap-northeast-1", TOKYO[1], "x86_64") == "it has no Fargate"
    assert "no arm64" in str(why_not("us-east-1", VIRGINIA[0], "arm64"))
    assert (
        why_not("us-east-1", VIRGINIA[0]._replace(available=False), "x86_64") == "it is not available to this account"
    )
    with pytest.raises(
        NoZones, match=r"fewer than two zones for arm64.*us-east-1a \(use1-az3\): its Fargate has no arm64"
    ):
        choose("us-east-1", VIRGINIA[:2], "arm64")


class Ec2:
    def __init__(self, zones: list[Zone], **more: Any) -> None:
        self._zones = zones
        self._more = more

    def describe_availability_zones(self, **_: Any) -> dict[str, Any]:
        zones = [{"ZoneName": each.name, "ZoneId": each.id, "State": "available"} for each in self._zones]
        return {"AvailabilityZones": zones}

    def describe_subnets(self, **_: Any) -> dict[str, Any]:
        return {"Subnets": self._more["subnets"]}

    def describe_vpc_endpoints(self, **_: Any) -> dict[str, Any]:
        return {"VpcEndpoints": self._more.get("endpoints", [])}


def deployment(ec2: Ec2, outputs: dict[str, str] | None = None, **values: str) -> script.Deployment:
    session = SimpleNamespace(client=lambda name: ec2 if name == "ec2" else None, region_name="us-east-1")
    made = script.Deployment(session, values)
    made.stacks = SimpleNamespace(outputs=lambda _name: outputs or {})  # type: ignore[assignment]
    return made


def test_x86_is_used_where_arm_is_missing_unless_arm_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    made = deployment(Ec2(VIRGINIA[:2]))
    made.place()
    assert made.values == {"Architecture": "x86_64", "ZoneA": "us-east-1a", "ZoneB": "us-east-1b"}
    assert "Using x86_64 instead" in capsys.readouterr().out
    with pytest.raises(DeployError, match="fewer than two zones for arm64"):
        deployment(Ec2(VIRGINIA[:2]), Architecture="arm64").place()
    with pytest.raises(DeployError, match="Set Region to another one"):
        deployment(Ec2(VIRGINIA[:1])).place()


def test_deployed_subnets_keep_their_zones() -> None:
    made = deployment(Ec2(VIRGINIA), {"ZoneA": "us-east-1c", "ZoneB": "us-east-1a"})
    made.place()
    assert {made.values["ZoneA"], made.values["ZoneB"]} == {"us-east-1c", "us-east-1a"}
    assert made.values["Architecture"] == "x86_64"


def subnet(zone: Zone, vpc: str = "vpc-1") -> dict[str, str]:
    return {"SubnetId": "subnet-1", "VpcId": vpc, "AvailabilityZone": zone.name, "AvailabilityZoneId": zone.id}


@pytest.mark.parametrize(
    ("ec2", "message"),
    [
        (Ec2([], subnets=[subnet(VIRGINIA[0])]), "subnet-1 is in us-east-1a (use1-az3): its Fargate has no arm64"),
        (Ec2([], subnets=[subnet(VIRGINIA[1], "vpc-2")]), "subnet-1 is in vpc-2, not in vpc-1"),
        (
            Ec2(
                [],
                subnets=[subnet(VIRGINIA[1])],
                endpoints=[{"VpcEndpointId": "vpce-1", "PrivateDnsEnabled": True}],
            ),
            "vpc-1 has the endpoint vpce-1 for execute-api with private DNS",
        ),
    ],
)
def test_a_vpc_that_cannot_work_is_rejected_before_anything_is_deployed(ec2: Ec2, message: str) -> None:
    with pytest.raises(DeployError) as error:
        deployment(ec2, VpcId="vpc-1", SubnetIds="subnet-1").place()
    assert message in str(error.value)


def test_a_vpc_that_works_is_accepted() -> None:
    endpoints = [{"VpcEndpointId": "vpce-1", "PrivateDnsEnabled": False}]
    deployment(Ec2([], subnets=[subnet(VIRGINIA[1])], endpoints=endpoints), VpcId="vpc-1", SubnetIds="subnet-1").place()


def test_the_network_takes_the_zones() -> None:
    given = Template("network", {"ZoneA": "us-east-1c", "ZoneB": "us-east-1a"})
    zones = {name: each["AvailabilityZone"] for name, each in given.of_type("AWS::EC2::Subnet").items()}
    assert zones == {"Public": "us-east-1c", "PrivateA": "us-east-1c", "PrivateB": "us-east-1a"}


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
    ("current", "kind", "kept", "rejected"),
    [
        ("gatecast-broadcasts", "standard", ["gatecast-broadcasts"], False),
        ("gatecast-broadcasts", "fifo", [], False),
        ("gatecast-broadcasts.fifo", "standard", ["gatecast-broadcasts"], True),
        ("gatecast-broadcasts", "fifo", ["gatecast-dead-letters.fifo"], True),
        ("", "fifo", ["gatecast-broadcasts.fifo"], False),
    ],
)
def test_a_kept_queue_whose_name_is_needed_is_named(current: str, kind: str, kept: list[str], rejected: bool) -> None:
    session = SimpleNamespace(client=lambda _name: Sqs(*kept), region_name="us-east-1")
    made = script.Deployment(session, {"Queue": kind})
    made.stacks = SimpleNamespace(outputs=lambda _name: {"QueueName": current} if current else {})  # type: ignore[assignment]
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

    def __init__(self, *, members: bool = False, settings: bool = False) -> None:
        self.items: list[dict[str, Any]] = []
        self._members = members
        self._settings = settings

    def query(self, **query: Any) -> dict[str, Any]:
        assert query["ExpressionAttributeValues"] == {":pk": {"S": "room#@all#0"}}
        return {"Items": [{}] if self._members else []}

    def put_item(self, **put: Any) -> None:
        assert put["ConditionExpression"] == "attribute_not_exists(pk)"
        if self._settings:
            raise KeyError
        self.items.append(put["Item"])


@pytest.mark.parametrize(("members", "settings", "written"), [(False, False, 1), (True, False, 0), (False, True, 0)])
def test_all_connections_are_spread_before_there_are_members(*, members: bool, settings: bool, written: int) -> None:
    dynamodb = DynamoDb(members=members, settings=settings)
    session = SimpleNamespace(client=lambda name: dynamodb if name == "dynamodb" else None, region_name="us-east-1")
    made = script.Deployment(session, {"TableName": "gatecast"})
    made._write_settings_of_all()
    assert len(dynamodb.items) == written
    for item in dynamodb.items:
        assert RoomSettings.from_item(item) == RoomSettings(16, 16)
