"""What a URL says about its host: the AWS Region it is in, and whether it may be public. Pure: resolves no names."""

import ipaddress
import re
from typing import Final
from urllib.parse import urlsplit

_SUFFIXES: Final = (
    "amazonaws.com", "amazonaws.com.cn", "amazonaws.eu", "c2s.ic.gov", "sc2s.sgov.gov", "cloud.adc-e.uk",
    "csp.hci.ic.gov", "api.aws", "api.amazonwebservices.com.cn", "api.amazonwebservices.eu", "api.aws.ic.gov",
    "api.aws.scloud", "api.cloud-aws.adc-e.uk", "api.aws.hci.ic.gov",
)  # fmt: skip
"""The domains of all of AWS's partitions; a test compares them with the SDK's."""
_REGION: Final = r"(?P<region>[a-z]{2,4}(?:-[a-z]+)+-[0-9]{1,2})"
_SERVICE: Final = r"(?:sqs|dynamodb|ddb|execute-api)(?:-fips)?"
_OF_AWS: Final = re.compile(
    rf"(?:(?:.+\.)?{_SERVICE}\.{_REGION}(?:\.vpce)?|{_REGION.replace('<region>', '<legacy>')}\.queue)"
    rf"\.(?:{'|'.join(map(re.escape, _SUFFIXES))})\.?"
)
_NAME: Final = re.compile(r"[a-z][a-z0-9_\-]*")
"""A name without a dot. One that begins with a digit may be an address in another notation."""
_NEVER_PUBLIC: Final = (".localhost", ".local", ".internal", ".test")
"""Ends of names that no public name server resolves: RFC 6761, RFC 6762, and ICANN's reservation of `internal`."""


def region_of(url: str) -> str | None:
    """The Region in the host name of an endpoint of SQS, DynamoDB or execute-api, one of a VPC included.

    None for a custom domain, another service, an address and anything that is no URL.
    """
    host = _host(url)
    found = _OF_AWS.fullmatch(host)
    if found is not None:
        return found["region"] or found["legacy"]
    return "us-east-1" if host == "queue.amazonaws.com" else None


def may_be_public(url: str) -> bool:
    """Whether the host may be on the internet: all except private addresses and names that cannot be public."""
    host = _host(url)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return not _NAME.fullmatch(host) and not host.endswith(_NEVER_PUBLIC)
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_global


def _host(url: str) -> str:
    """The host name in lower case; empty if there is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
