"""Where the worker's tasks run: the zones and the architecture, chosen or checked before anything is deployed.

Fargate starts no task in a zone without it, or without the architecture. ECS then retries until the deployment fails.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from deploy.ecs.stacks import DeployError
from deploy.ecs.zones import NEEDED, Zone, choose, why_not

ARCHITECTURES: Final = ("arm64", "x86_64")
"""In the order of preference: arm64 costs a fifth less."""
_OVERRIDE: Final = 'If AWS\'s documentation has changed since (deploy/ecs/zones.py), set CheckZones = "no"'


class Place(NamedTuple):
    """A zone that is given, and by what."""

    by: str
    zone: Zone


def place(
    ec2: Any, region: str, values: Mapping[str, str], deployed: Sequence[str], *, say: Callable[[str], None]
) -> dict[str, str]:
    """The parameters Architecture and, unless VpcId is given, ZoneA and ZoneB. Raises DeployError.

    `ec2` is a boto3 client, `values` are the given parameters, `deployed` the ids of the network's private subnets A
    and B if it has been deployed: these keep their zones. `say` prints what was chosen, and why.
    """
    known = _zones(ec2)
    vpc, fixed = values.get("VpcId"), _given(region, values, known)
    if vpc:
        fixed = _zones_of_subnets(ec2, values["SubnetIds"].replace(" ", "").split(","), known, vpc)
        _check_endpoints(ec2, vpc, values)
    elif deployed:
        current = _zones_of_subnets(ec2, deployed, known)
        if fixed and [each.zone.id for each in fixed] != [each.zone.id for each in current]:
            names = " and ".join(each.zone.name for each in current)
            raise DeployError(f"ZoneA and ZoneB: the network is in {names}, and its subnets cannot move")
        fixed = current
    architecture, zones = _settle(region, values, fixed, known, say)
    say(f"Zones {' and '.join(map(_named, zones))}, {architecture}")
    chosen = {} if vpc else {"ZoneA": zones[0].name, "ZoneB": zones[1].name}
    return {"Architecture": architecture, **chosen}


def _settle(
    region: str,
    values: Mapping[str, str],
    fixed: Sequence[Place],
    known: Sequence[Zone],
    say: Callable[[str], None],
) -> tuple[str, Sequence[Zone]]:
    """The first architecture for which there are zones, and these."""
    wanted, zones = values.get("Architecture"), [each.zone for each in fixed]
    if values.get("CheckZones") == "no":
        return wanted or ARCHITECTURES[0], zones or sorted(known, key=lambda zone: zone.id)[:NEEDED]
    # An image that was built elsewhere has one architecture, and only its owner knows it.
    candidates = (wanted,) if wanted else ARCHITECTURES[:1] if values.get("Image") else ARCHITECTURES
    problems: list[str] = []
    for architecture in candidates:
        rejected = list(_rejected(region, fixed or [Place("", zone) for zone in known], architecture))
        chosen = zones if fixed else choose(region, known, architecture)
        if not rejected if fixed else len(chosen) == NEEDED:
            for line in [*problems, *rejected]:
                say(line)
            return architecture, chosen
        problems += rejected or [f"{region} has fewer than {NEEDED} zones"]
    if values.get("Image") and not wanted:
        problems.append("Image is set: set Architecture to that of the image, if it is not arm64")
    raise DeployError("\n".join([f"No zones for {' or '.join(candidates)} tasks on Fargate", *problems, _OVERRIDE]))


def _rejected(region: str, places: Sequence[Place], architecture: str) -> Iterator[str]:
    for by, zone in places:
        if why := why_not(region, zone, architecture):
            yield f"  {by}{': ' * bool(by)}not in {_named(zone)} for {architecture}: {why}"


def _zones(ec2: Any) -> list[Zone]:
    found = ec2.describe_availability_zones(Filters=[{"Name": "zone-type", "Values": ["availability-zone"]}])
    return [Zone(each["ZoneName"], each["ZoneId"], each["State"]) for each in found["AvailabilityZones"]]


def _given(region: str, values: Mapping[str, str], known: Sequence[Zone]) -> list[Place]:
    """ZoneA and ZoneB, each by name or id."""
    named = {name: zone for zone in known for name in (zone.name, zone.id)}
    given = {parameter: values[parameter] for parameter in ("ZoneA", "ZoneB") if values.get(parameter)}
    for parameter, value in given.items():
        if value not in named:
            zones = ", ".join(map(_named, known))
            raise DeployError(f"{parameter}: {region} has no zone {value} for this account; it has {zones}")
    places = [Place(parameter, named[value]) for parameter, value in given.items()]
    if places and len({each.zone for each in places}) != NEEDED:
        raise DeployError("ZoneA and ZoneB: set two different zones, or neither, and the script chooses")
    return places


def _zones_of_subnets(ec2: Any, ids: Sequence[str], known: Sequence[Zone], vpc: str | None = None) -> list[Place]:
    """The zones of subnets, in the order of `ids`. Raises DeployError if one is not in `vpc`, or is in a Local Zone."""
    subnets = {each["SubnetId"]: each for each in ec2.describe_subnets(SubnetIds=ids)["Subnets"]}
    by_id = {zone.id: zone for zone in known}
    places: list[Place] = []
    for subnet in (subnets[each] for each in ids):
        label, zone_id = f"subnet {subnet['SubnetId']}", subnet["AvailabilityZoneId"]
        if vpc and subnet["VpcId"] != vpc:
            raise DeployError(f"SubnetIds: {label} is in {subnet['VpcId']}, not in {vpc}")
        if zone_id not in by_id:
            raise DeployError(f"SubnetIds: {label} is in {zone_id}, a Local Zone or the like, which has no Fargate")
        # Whatever its state: an outage of a zone must not prevent updates of what runs there.
        places.append(Place(label, by_id[zone_id]._replace(state="available")))
    return places


def _check_endpoints(ec2: Any, vpc: str, values: Mapping[str, str]) -> None:
    """Raise DeployError if the VPC cannot reach the API: its name would resolve to an endpoint for private APIs."""
    own = urlsplit(values.get("ConnectionsEndpoint", "")).hostname or ""
    if own and ".execute-api." not in own:
        return  # a custom domain, which the endpoint's private DNS does not cover
    filters = [{"Name": "vpc-id", "Values": [vpc]}, {"Name": "service-name", "Values": ["*.execute-api"]}]
    for endpoint in ec2.describe_vpc_endpoints(Filters=filters)["VpcEndpoints"]:
        if endpoint.get("PrivateDnsEnabled"):
            raise DeployError(
                f"VpcId: {vpc} has the endpoint {endpoint['VpcEndpointId']} for execute-api with private DNS: from it,"
                " every post to a public API is rejected with 403. Disable its private DNS, use another VPC, or give"
                " the API a custom domain with an alias record (not CNAME) and set ConnectionsEndpoint to it"
            )


def _named(zone: Zone) -> str:
    return f"{zone.name} ({zone.id})"
