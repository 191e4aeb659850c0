"""What a URL says about its host. The Regions are compared with every endpoint that the SDK knows."""

import botocore.loaders
import pytest

from gatecast.addresses import may_be_public, region_of


def known_endpoints() -> dict[str, str]:
    """The Region of each host name of SQS, DynamoDB and execute-api in the SDK's data."""
    endpoints = botocore.loaders.Loader().load_data("endpoints")
    found: dict[str, str] = {}
    for partition in endpoints["partitions"]:
        variants = partition["defaults"].get("variants", [])
        suffixes = [partition["dnsSuffix"], *(each["dnsSuffix"] for each in variants if "dnsSuffix" in each)]
        for region in partition["regions"]:
            for suffix in suffixes:
                for service in ("sqs", "sqs-fips", "dynamodb", "abc123.execute-api", "123456789012.ddb"):
                    found[f"{service}.{region}.{suffix}"] = region
                    found[f"vpce-0a1b2c-3d4e-{region}a.{service}.{region}.vpce.{suffix}"] = region
                found[f"{region}.queue.{suffix}"] = region
        for service in ("sqs", "dynamodb"):
            for region, endpoint in partition["services"].get(service, {"endpoints": {}})["endpoints"].items():
                if region in partition["regions"] and "hostname" in endpoint:
                    found[endpoint["hostname"]] = region
    return found


def test_the_region_of_every_endpoint_that_the_sdk_knows() -> None:
    known = known_endpoints()
    assert len(set(known.values())) > 30
    assert {host: region_of(f"https://{host}/path") for host in known} == known


def test_the_domains_of_all_partitions_are_known() -> None:
    partitions = botocore.loaders.Loader().load_data("partitions")["partitions"]
    for partition in partitions:
        for key in ("dnsSuffix", "dualStackDnsSuffix"):
            region = partition["outputs"]["implicitGlobalRegion"]
            assert region_of(f"https://sqs.{region}.{partition['outputs'][key]}/1/q") == region


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://queue.amazonaws.com/123456789012/q", "us-east-1"),
        ("https://SQS.EU-WEST-1.amazonaws.com/1/q", "eu-west-1"),
        ("https://sqs.eu-west-1.amazonaws.com.:443/1/q", "eu-west-1"),
        ("https://ws.example.com/live", None),
        ("https://sqs.eu-west-1.amazonaws.com.example.com/1/q", None),
        ("http://sqs.us-east-1.localhost.localstack.cloud:4566/1/q", None),
        ("https://s3.eu-west-1.amazonaws.com", None),
        ("https://sts.eu-west-1.amazonaws.com", None),
        ("http://aws:4566/1/q", None),
        ("http://[::1]/q", None),
        ("http://[::/q", None),
        ("", None),
    ],
)
def test_regions(url: str, region: str | None) -> None:
    assert region_of(url) == region


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1.2.3", "[::1]", "[::ffff:127.0.0.1]", "10.1.2.3", "172.16.0.1", "172.31.255.255",
        "192.168.0.1", "169.254.1.2", "[fe80::1]", "[fe80::1%25eth0]", "[fd00::1]", "localhost", "LOCALHOST", "gateway",
        "my_gateway-2", "api.localhost", "host.docker.internal", "ip-10-0-0-1.eu-west-1.compute.internal",
        "gateway.default.svc.cluster.local",
    ],
)  # fmt: skip
def test_these_cannot_be_public(host: str) -> None:
    assert not may_be_public(f"http://{host}:4510/live")


@pytest.mark.parametrize(
    "host",
    [
        "8.8.8.8", "172.32.0.1", "193.168.0.1", "[2600::1]", "[::ffff:8.8.8.8]", "ws.example.com", "134744072",
        "0x8080808", "8.8", "gateway.", "localhost.example.com", "internal.",
    ],
)  # fmt: skip
def test_these_may_be_public(host: str) -> None:
    assert may_be_public(f"http://{host}/live")
