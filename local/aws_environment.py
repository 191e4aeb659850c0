"""The region, credentials and environment with which AWS SDKs use the local stack instead of AWS."""

import os
from collections.abc import Mapping
from typing import Final

from gatecast.emulator import defaults

REGION: Final = defaults.REGION
CREDENTIALS: Final = defaults.CREDENTIALS
"""The gateway's own, so that the whole stack shares one pair of keys."""

_SERVICES: Final = ("SQS", "DYNAMODB", "S3", "SECRETS_MANAGER")


def sdk_environment(url: str) -> dict[str, str]:
    """The SDK's variables with which every client uses the emulator at `url`, overriding the user's configuration."""
    return {
        **{f"AWS_ENDPOINT_URL_{service}": url for service in _SERVICES},
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": CREDENTIALS.access_key_id,
        "AWS_SECRET_ACCESS_KEY": CREDENTIALS.secret_access_key,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def without_aws(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without the SDK's variables: a profile or a session token would take precedence over ours."""
    return {name: value for name, value in environment.items() if not name.startswith("AWS_")}
