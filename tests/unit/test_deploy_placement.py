"""The zones and the architecture in which the deploy script puts the worker's tasks."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from deploy.ecs import __main__ as script
from deploy.ecs.parameters import check
from deploy.ecs.placement import place
from deploy.ecs.stacks import DeployError, Parameter
from deploy.ecs.zones import FARGATE_ONLY_IN, NO_ARM_REGIONS, NO_ARM_ZONES, Zone, choose, why_not
from tests.templates import Template

TOKYO = [Zone(f"ap-northeast-1{letter}", f"apne1-az{number}") for letter, number in zip("acd", (4, 3, 1), strict=True)]
VIRGINIA = [Zone(f"us-east-1{letter}", f"use1-az{number}") for letter, number in zip("abc", (3, 6, 1), strict=True)]
A, B, C = VIRGINIA
BAHRAIN = [Zone(f"me-south-1{letter}", f"mes1-az{number}") for letter, number in zip("ab", (2, 1), strict=True)]


def names(zones: Sequence[Zone]) -> str:
    return " ".join(zone.name for zone in zones)


def test_zones_are_chosen_by_their_ids() -> None:
    assert names(choose("ap-northeast-1", TOKYO, "arm64")) == "ap-northeast-1d ap-northeast-1a"
    assert names(choose("us-east-1", VIRGINIA, "arm64")) == "us-east-1c us-east-1b"
    assert names(choose("us-east-1", VIRGINIA, "x86_64")) == "us-east-1c us-east-1a"
    assert choose("us-east-1", reversed(VIRGINIA), "arm64") == choose("us-east-1", VIRGINIA, "arm64")


@pytest.mark.parametrize(
    ("region", "zone", "arm64", "x86_64"),
    [
        ("eu-west-1", Zone("eu-west-1a", "euw1-az1"), None, None),
        ("ap-northeast-1", TOKYO[1], "it has no Fargate", "it has no Fargate"),
        ("us-west-1", Zone("us-west-1b", "usw1-az2"), "it has no Fargate", "it has no Fargate"),
        ("us-east-1", A, "its Fargate has no arm64", None),
        ("us-gov-west-1", Zone("us-gov-west-1a", "usgw1-az1"), "its Fargate has no arm64", None),
        ("us-east-1", B._replace(state="impaired"), "its state is impaired", "its state is impaired"),
    ],
)
def test_a_zone_is_rejected_with_the_reason(region: str, zone: Zone, arm64: str | None, x86_64: str | None) -> None:
    assert (why_not(region, zone, "arm64"), why_not(region, zone, "x86_64")) == (arm64, x86_64)


def test_the_lists_of_exceptions_hold_zone_ids_and_regions() -> None:
    zones = NO_ARM_ZONES.union(*FARGATE_ONLY_IN.values())
    assert all("-az" in zone for zone in zones)
    assert not [region for region in NO_ARM_REGIONS | FARGATE_ONLY_IN.keys() if "-az" in region]


class Ec2:
    """`subnets` are (subnet, zone, VPC)."""

    def __init__(
        self, zones: Sequence[Zone], *subnets: tuple[str, Zone, str], endpoints: Sequence[dict[str, Any]] = ()
    ) -> None:
        self._zones = zones
        self._subnets = subnets
        self._endpoints = endpoints

    def describe_availability_zones(self, **_: Any) -> dict[str, Any]:
        zones = [{"ZoneName": each.name, "ZoneId": each.id, "State": each.state} for each in self._zones]
        return {"AvailabilityZones": zones}

    def describe_subnets(self, SubnetIds: Sequence[str]) -> dict[str, Any]:  # noqa: N803
        return {
            "Subnets": [  # in an order of its own
                {"SubnetId": name, "AvailabilityZone": zone.name, "AvailabilityZoneId": zone.id, "VpcId": vpc}
                for name, zone, vpc in sorted(self._subnets, reverse=True)
                if name in SubnetIds
            ]
        }

    def describe_vpc_endpoints(self, Filters: Sequence[dict[str, Any]]) -> dict[str, Any]:  # noqa: N803
        assert [each["Values"] for each in Filters] == [["vpc-1"], ["*.execute-api"]]
        return {"VpcEndpoints": self._endpoints}


def placed(
    ec2: Ec2, deployed: Sequence[str] = (), *, region: str = "us-east-1", **values: str
) -> tuple[dict[str, str], list[str]]:
    """The parameters, and what was printed."""
    printed: list[str] = []
    return place(ec2, region, values, deployed, say=printed.append), printed


# A new network


def test_the_choice_and_its_reason_are_printed() -> None:
    chosen, printed = placed(Ec2(VIRGINIA))
    assert chosen == {"Architecture": "arm64", "ZoneA": "us-east-1c", "ZoneB": "us-east-1b"}
    assert printed == [
        "  not in us-east-1a (use1-az3) for arm64: its Fargate has no arm64",
        "Zones us-east-1c (use1-az1) and us-east-1b (use1-az6), arm64",
    ]


def test_x86_is_used_where_there_is_no_arm_unless_it_is_required() -> None:
    chosen, printed = placed(Ec2(BAHRAIN), region="me-south-1")
    assert chosen == {"Architecture": "x86_64", "ZoneA": "me-south-1b", "ZoneB": "me-south-1a"}
    assert "  not in me-south-1a (mes1-az2) for arm64: its Fargate has no arm64" in printed
    with pytest.raises(DeployError, match=r"No zones for arm64 tasks(?s:.*)mes1-az2(?s:.*)CheckZones = \"no\""):
        placed(Ec2(BAHRAIN), region="me-south-1", Architecture="arm64")
    with pytest.raises(DeployError, match="set Architecture to that of the image"):
        placed(Ec2(BAHRAIN), region="me-south-1", Image="repository@sha256:1")
    assert placed(Ec2(VIRGINIA), Image="repository@sha256:1")[0]["Architecture"] == "arm64"


def test_a_region_with_one_suitable_zone_is_rejected() -> None:
    with pytest.raises(DeployError, match=r"No zones for arm64 or x86_64 tasks(?s:.*)fewer than 2 zones"):
        placed(Ec2([C]))


def test_outdated_lists_can_be_ignored() -> None:
    chosen, _ = placed(Ec2(BAHRAIN), region="me-south-1", CheckZones="no")
    assert chosen == {"Architecture": "arm64", "ZoneA": "me-south-1b", "ZoneB": "me-south-1a"}
    given, _ = placed(Ec2(VIRGINIA), CheckZones="no", ZoneA="use1-az3", ZoneB="use1-az1")
    assert given == {"Architecture": "arm64", "ZoneA": "us-east-1a", "ZoneB": "us-east-1c"}


def test_given_zones_are_taken_by_name_or_id() -> None:
    chosen, _ = placed(Ec2(VIRGINIA), ZoneA="us-east-1b", ZoneB="use1-az1")
    assert chosen == {"Architecture": "arm64", "ZoneA": "us-east-1b", "ZoneB": "us-east-1c"}
    chosen, _ = placed(Ec2(VIRGINIA), ZoneA="us-east-1b", ZoneB="us-east-1a")
    assert chosen["Architecture"] == "x86_64", "one of them has no arm64, which was not required"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ZoneA": "us-east-1b"}, "set two different zones"),
        ({"ZoneA": "us-east-1b", "ZoneB": "use1-az6"}, "set two different zones"),
        (
            {"ZoneA": "us-east-1z", "ZoneB": "use1-az6"},
            r"ZoneA: us-east-1 has no zone us-east-1z .* us-east-1a \(use1-az3\)",
        ),
        (
            {"ZoneA": "us-east-1b", "ZoneB": "us-east-1a", "Architecture": "arm64"},
            r"ZoneB: not in us-east-1a \(use1-az3\) for arm64: its Fargate has no arm64",
        ),
    ],
)
def test_given_zones_that_cannot_work_are_rejected(values: dict[str, str], message: str) -> None:
    with pytest.raises(DeployError, match=message):
        placed(Ec2(VIRGINIA), **values)


# A network that has been deployed


@pytest.mark.parametrize("zones", [(B, C), (C, B), (A, C), (C, A)])
def test_deployed_subnets_keep_their_zones(zones: tuple[Zone, Zone]) -> None:
    """In any order: a subnet that changes its zone is replaced, which fails, for its addresses are in use."""
    ec2 = Ec2(VIRGINIA, ("subnet-a", zones[0], "vpc-1"), ("subnet-b", zones[1], "vpc-1"))
    chosen, _ = placed(ec2, ["subnet-a", "subnet-b"])
    assert (chosen["ZoneA"], chosen["ZoneB"]) == (zones[0].name, zones[1].name)
    assert chosen["Architecture"] == ("x86_64" if A in zones else "arm64")
    with pytest.raises(DeployError, match="its subnets cannot move"):
        placed(ec2, ["subnet-a", "subnet-b"], ZoneA=zones[1].name, ZoneB=zones[0].name)


def test_an_outage_of_a_zone_does_not_prevent_updates() -> None:
    ec2 = Ec2([B._replace(state="unavailable"), C], ("subnet-a", B, "vpc-1"), ("subnet-b", C, "vpc-1"))
    assert placed(ec2, ["subnet-a", "subnet-b"])[0]["ZoneA"] == B.name


# A given VPC


def in_vpc(zone: Zone, vpc: str = "vpc-1", endpoints: Sequence[dict[str, Any]] = ()) -> Ec2:
    return Ec2(VIRGINIA, ("subnet-1", zone, vpc), endpoints=endpoints)


PRIVATE_DNS = [{"VpcEndpointId": "vpce-1", "PrivateDnsEnabled": True}]
BOSTON = Zone("us-east-1-bos-1a", "use1-bos1-az1")


@pytest.mark.parametrize(
    ("ec2", "values", "message"),
    [
        (in_vpc(A), {"Architecture": "arm64"}, "subnet subnet-1: not in us-east-1a (use1-az3) for arm64"),
        (in_vpc(A), {"Image": "repository@sha256:1"}, "set Architecture to that of the image"),
        (in_vpc(B, "vpc-2"), {}, "subnet-1 is in vpc-2, not in vpc-1"),
        (in_vpc(BOSTON), {}, "subnet-1 is in use1-bos1-az1, a Local Zone or the like"),
        (in_vpc(B, endpoints=PRIVATE_DNS), {}, "vpc-1 has the endpoint vpce-1 for execute-api with private DNS"),
        (
            in_vpc(B, endpoints=PRIVATE_DNS),
            {"ConnectionsEndpoint": "https://a1.execute-api.us-east-1.amazonaws.com/live"},
            "rejected with 403",
        ),
    ],
)
def test_a_vpc_that_cannot_work_is_rejected(ec2: Ec2, values: dict[str, str], message: str) -> None:
    with pytest.raises(DeployError) as error:
        placed(ec2, VpcId="vpc-1", SubnetIds="subnet-1", **values)
    assert message in str(error.value)


def test_a_vpc_that_works_is_accepted() -> None:
    given = {"VpcId": "vpc-1", "SubnetIds": "subnet-1"}
    public_dns = [{"VpcEndpointId": "vpce-1", "PrivateDnsEnabled": False}]
    assert placed(in_vpc(B, endpoints=public_dns), **given)[0] == {"Architecture": "arm64"}
    assert placed(in_vpc(A), **given)[0] == {"Architecture": "x86_64"}
    domain = {"ConnectionsEndpoint": "https://ws.example.com"}
    assert placed(in_vpc(B, endpoints=PRIVATE_DNS), **given, **domain)[0] == {"Architecture": "arm64"}


# In the script


def test_nothing_is_deployed_before_the_zones_are_checked() -> None:
    ec2 = Ec2(BAHRAIN)
    session = SimpleNamespace(client=lambda name: ec2 if name == "ec2" else None, region_name="me-south-1")
    made = script.Deployment(session, {"Architecture": "arm64"})
    made.stacks = SimpleNamespace(outputs=lambda _: {})  # type: ignore[assignment]
    with pytest.raises(DeployError, match="No zones for arm64"):
        made.deploy()


def test_the_artifacts_are_built_for_the_architecture_of_the_zones() -> None:
    ec2 = Ec2(BAHRAIN)
    session = SimpleNamespace(client=lambda name: ec2 if name == "ec2" else None, region_name="me-south-1")
    made = script.Deployment(session, {})
    made.stacks = SimpleNamespace(outputs=lambda _: {})  # type: ignore[assignment]
    made.place()
    assert made._architecture == made.values["Architecture"] == "x86_64"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"VpcId": "vpc-1", "SubnetIds": "subnet-1", "ZoneA": "us-east-1a"}, "ZoneA and ZoneB are zones of a new VPC"),
        ({"CheckZones": "false"}, "CheckZones is 'false': expected yes or no"),
        ({"Architecture": "amd64"}, "Architecture is 'amd64': expected arm64 or x86_64"),
    ],
)
def test_parameters_that_contradict_each_other_are_named(values: dict[str, str], message: str) -> None:
    parameters = [Parameter(name, "") for name in ("VpcId", "SubnetIds", "ZoneA", "ZoneB", "Architecture")]
    with pytest.raises(DeployError, match=message):
        check(values, {"network": parameters})


def test_the_network_takes_the_zones() -> None:
    given = Template("network", {"ZoneA": "us-east-1c", "ZoneB": "us-east-1a"})
    zones = {name: each["AvailabilityZone"] for name, each in given.of_type("AWS::EC2::Subnet").items()}
    assert zones == {"Public": "us-east-1c", "PrivateA": "us-east-1c", "PrivateB": "us-east-1a"}
    assert Template("network").outputs["SubnetIds"] == "${PrivateA},${PrivateB}", "in this order"
