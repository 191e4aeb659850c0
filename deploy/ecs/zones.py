"""In which zones of a Region Fargate runs the worker's tasks, by architecture. Pure.

Zones are compared by their ids, such as use1-az3: names, such as us-east-1a, mean different zones in different
accounts. The exceptions are those of AWS's documentation of Fargate ("Supported Regions for Amazon ECS on AWS Fargate",
"Task definitions for 64-bit ARM workloads"), read in November 2026.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

_ONLY: Final = {
    "us-west-1": frozenset({"usw1-az1", "usw1-az3"}),
    "ap-northeast-1": frozenset({"apne1-az1", "apne1-az2", "apne1-az4"}),
    "cn-north-1": frozenset({"cnn1-az1", "cnn1-az2"}),
}
"""Regions in which Fargate runs in these zones only; in all others it runs in every zone."""
_NO_ARM: Final = frozenset({"use1-az3"})
"""Zones in which Fargate has no arm64."""

NEEDED: Final = 2


class Zone(NamedTuple):
    """A zone of the account's Region: its name, its id, and whether it is available to the account."""

    name: str
    id: str
    available: bool = True


class NoZones(Exception):
    """Fewer than two zones can run the tasks. The message says which zones cannot, and why."""


def why_not(region: str, zone: Zone, architecture: str) -> str | None:
    """Why Fargate cannot run tasks of this architecture in the zone; None if it can."""
    if not zone.available:
        return "it is not available to this account"
    if zone.id not in _ONLY.get(region, {zone.id}):
        return "it has no Fargate"
    if architecture == "arm64" and zone.id in _NO_ARM:
        return "its Fargate has no arm64: set Architecture to x86_64, or leave it out"
    return None


def choose(region: str, zones: Iterable[Zone], architecture: str) -> tuple[str, str]:
    """The names of two zones for the tasks, the same at every deployment. Raises NoZones."""
    found = sorted(zones, key=lambda zone: zone.id)
    suitable = [zone.name for zone in found if why_not(region, zone, architecture) is None]
    if len(suitable) < NEEDED:
        reasons = [f"{zone.name} ({zone.id}): {why}" for zone in found if (why := why_not(region, zone, architecture))]
        raise NoZones(
            f"{region} has fewer than two zones for {architecture} tasks on Fargate. "
            + "; ".join(reasons or ["the account has no other zones"])
        )
    first, second = suitable[:NEEDED]
    return first, second
