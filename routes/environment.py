"""What the environment says. Every wrong or missing variable is named, and nothing goes on without it."""

import os
import re
from typing import Any, Final

import boto3
from botocore.config import Config

OPEN_ACCESS: Final = "none, anyone may connect"
"""What GATECAST_AUTHORIZER must say, word for word, for routes to serve connections that no authorizer let in."""

_REQUIRED: Final = "required"


class ConfigurationError(Exception):
    """What operates this is set up wrongly. The message says what is, and holds nothing secret."""


def required(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise ConfigurationError(f"{name} is not set")
    return value


def integer(name: str, most: int, *, default: int) -> int:
    """A whole number from 0 to `most`."""
    value = os.environ.get(name, str(default))
    if not re.fullmatch(r"[0-9]{1,9}", value) or int(value) > most:
        raise ConfigurationError(f"{name} is {value!r}: it takes a whole number from 0 to {most:,}")
    return int(value)


def open_access() -> bool:
    """Whether anyone may connect. Anything but the words that say so means that an authorizer is demanded."""
    value = os.environ.get("GATECAST_AUTHORIZER", _REQUIRED)
    if value not in {_REQUIRED, OPEN_ACCESS}:
        raise ConfigurationError(f"GATECAST_AUTHORIZER is {value!r}: it takes {_REQUIRED!r} or {OPEN_ACCESS!r}")
    return value == OPEN_ACCESS


def client(service: str, config: Config) -> Any:
    """A boto3 client in the Region of the function."""
    # boto3 itself reads AWS_DEFAULT_REGION only
    return boto3.session.Session(region_name=os.environ.get("AWS_REGION")).client(service, config=config)
