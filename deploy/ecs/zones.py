"""In which zones of a Region Fargate runs the worker's tasks, by architecture. Pure.

Zones are compared by their ids, such as use1-az3: names, such as us-east-1a, mean different zones in different
accounts. The lists are exceptions: everywhere else Fargate runs both architectures in every zone. They will become
outdated; `CheckZones = "no"` deploys without them.
"""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

FARGATE_ONLY_IN: Final[Mapping[str, frozenset[str]]] = {
    "us-west-1": frozenset({"usw1-az1", "usw1-az3"}),
    "ap-northeast-1": frozenset({"apne1-az1", "apne1-az2", "apne1-az4"}),
    "cn-north-1": frozenset({"cnn1-az1", "cnn1-az2"}),
}
"""Regions where Fargate runs in these zones only.

Source: Amazon ECS Developer Guide, "Supported Regions for Amazon ECS on AWS Fargate", read in November 2026.
"""
NO_ARM_ZONES: Final = frozenset({"use1-az3", "apne3-az2", "apne3-az3"})
"""Zones where Fargate has no arm64. Source: that of NO_ARM_REGIONS."""
NO_ARM_REGIONS: Final = frozenset(
    {
        "af-south-1",
        "ap-south-2",
        "cn-north-1",
        "cn-northwest-1",
        "eu-central-2",
        "me-central-1",
        "me-south-1",
        "us-gov-east-1",
        "us-gov-west-1",
    }
)
"""Regions where Fargate has no arm64.

Source: Amazon ECS Developer Guide, "Working with 64-bit ARM workloads on Amazon ECS", last public revision of its
source (2023). Some may have arm64 by now; x86_64 runs in all of them.
"""

NEEDED: Final = 2


class Zone(NamedTuple):
    """A zone of the account's Region."""

    name: str
    id: str
    state: str = "available"


def why_not(region: str, zone: Zone, architecture: str) -> str | None:
    """Why Fargate cannot run tasks of this architecture in the zone; None if it can."""
    if zone.state != "available":
        return f"its state is {zone.state}"
    if zone.id not in FARGATE_ONLY_IN.get(region, {zone.id}):
        return "it has no Fargate"
    if architecture == "arm64" and (region in NO_ARM_REGIONS or zone.id in NO_ARM_ZONES):
        return "its Fargate has no arm64"
    return None


def choose(region: str, zones: Iterable[Zone], architecture: str) -> tuple[Zone, ...]:
    """At most two zones for the tasks, in the order of their ids, so that every deployment chooses the same."""
    suitable = (zone for zone in zones if why_not(region, zone, architecture) is None)
    return tuple(sorted(suitable, key=lambda zone: zone.id)[:NEEDED])
