"""What a URL says: whether it may be a queue's or an API's, its Region, and whether its host may be public. Pure."""

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
_BASE_PATH: Final = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~\-$+!*'()]+)*")
"""What API Gateway allows in base paths and stages. It and the SDKs would remove the segments `.` and `..`."""
_NAME: Final = re.compile(r"[a-z][a-z0-9_\-]*")
"""A name without a dot. One that begins with a digit may be an address in another notation."""
_NEVER_PUBLIC: Final = (".localhost", ".local", ".internal", ".test")
"""Ends of names that no public name server resolves: RFC 6761, RFC 6762, and ICANN's reservation of `internal`."""


class WrongAddress(ValueError):
    """The address is not as expected. The message says what is wrong; it is empty if the text is no such URL at all."""


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


def is_loopback(host: str) -> bool:
    """Whether a server that listens on this address or host name can be reached from the same machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def is_queue_url(url: str) -> bool:
    """Whether it may be the URL of a queue, at any host: emulators and VPC endpoints have names of their own."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and bool(parts.path.strip("/"))


def connections_endpoint(url: str) -> str:
    """The address of an API whose connections are posted to, without a slash at its end. Raises WrongAddress."""
    url = url.rstrip("/")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise WrongAddress from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise WrongAddress
    if "@connections" in url:
        raise WrongAddress("leave out /@connections, it is added")
    if ".execute-api." in parts.hostname and parts.path.count("/") != 1:
        raise WrongAddress("an execute-api address ends in the stage and nothing else")
    if not _BASE_PATH.fullmatch(parts.path):
        raise WrongAddress("its path may hold letters, digits and . _ ~ - $ + ! * ' ( ) only, and no segment . or ..")
    if parts.scheme == "http" and may_be_public(url):
        raise WrongAddress(
            "http:// would send the session token in clear text, so it is only for this machine and private "
            "networks: expected https://"
        )
    return url


def _host(url: str) -> str:
    """The host name in lower case; empty if there is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
