"""Configuration from environment variables. Errors name the variable that is missing or invalid."""

import ipaddress
import os
import re
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlsplit

import boto3
from botocore.config import Config

OPEN_ACCESS: Final = "none, anyone may connect"
"""The exact value of GATECAST_AUTHORIZER with which routes serve connections that no authorizer has admitted."""

_REQUIRED: Final = "required"


class ConfigurationError(Exception):
    """The deployment is misconfigured. The message says what is wrong and contains nothing secret."""


def required(name: str) -> str:
    """The variable's value. Raises ConfigurationError if it is unset or empty."""
    value = os.environ.get(name)
    if not value:
        raise ConfigurationError(f"{name} is not set")
    return value


def integer(name: str, maximum: int, *, default: int) -> int:
    """A whole number from 0 to `maximum`. Raises ConfigurationError."""
    value = os.environ.get(name, str(default))
    if not re.fullmatch(r"[0-9]{1,9}", value) or int(value) > maximum:
        raise ConfigurationError(f"{name} is {value!r}: expected a whole number from 0 to {maximum:,}")
    return int(value)


def connections_endpoint() -> str | None:
    """GATECAST_CONNECTIONS_ENDPOINT, or None if it is unset or empty. Raises ConfigurationError."""
    url = os.environ.get("GATECAST_CONNECTIONS_ENDPOINT")
    if not url:
        return None
    if problem := url_problem(url):
        raise ConfigurationError(f"GATECAST_CONNECTIONS_ENDPOINT {problem}: expected https://{{host}}/{{stage}}")
    return url


def url_problem(url: str) -> str | None:
    """What is wrong with an address; None if it is https, or http to this machine, and plain. Quotes none of it.

    The text is checked first: urlsplit removes line breaks and tabs.
    """
    if not re.fullmatch(r"[!-~]+", url):
        return "contains a space, a line break or a character that is not ASCII"
    try:
        address = urlsplit(url)
        address.port  # noqa: B018 - it is parsed only now
    except ValueError:
        return "is not a valid address"
    if "@" in address.netloc:
        return "contains a user's name or password"
    if "#" in url:
        return "contains a fragment"
    if "\\" in url or not address.hostname:
        return "is not a valid address"
    if address.scheme == "http" and _is_loopback(address.hostname):
        return None
    return None if address.scheme == "https" else "does not begin with https://"


def open_access() -> bool:
    """Whether anyone may connect. Only the exact value OPEN_ACCESS allows it. Raises ConfigurationError."""
    value = os.environ.get("GATECAST_AUTHORIZER", _REQUIRED)
    if value not in {_REQUIRED, OPEN_ACCESS}:
        raise ConfigurationError(f"GATECAST_AUTHORIZER is {value!r}: expected {_REQUIRED!r} or {OPEN_ACCESS!r}")
    return value == OPEN_ACCESS


def session() -> Any:
    """A boto3 session in the function's Region."""
    # boto3 itself reads AWS_DEFAULT_REGION only
    return boto3.session.Session(region_name=os.environ.get("AWS_REGION"))


def client(service: str, config: Config, *, endpoint_url: str | None = None) -> Any:
    """A boto3 client in the function's Region."""
    return session().client(service, config=config, endpoint_url=endpoint_url)


def credentials_expire_at(session: Any) -> float | None:
    """When the session's credentials expire, in seconds since the epoch; None if they do not, or it is not known.

    Only refreshable credentials have an expiry, and botocore exposes it only as a private attribute. Lambda does not
    say when those of a function expire.
    """
    expiry = getattr(session.get_credentials(), "_expiry_time", None)
    return expiry.timestamp() if isinstance(expiry, datetime) else None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
