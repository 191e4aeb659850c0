"""Pointing AWS SDKs at the stand-ins: the credentials, the region and the environment that the whole stack shares."""

import os
import secrets
from collections.abc import Mapping
from typing import Final

from local.gateway.sigv4 import Credentials

REGION: Final = "us-east-1"
CREDENTIALS: Final = Credentials("local", secrets.token_hex(20))  # new in each process, whose children are handed them
_SERVICES: Final = ("SQS", "DYNAMODB", "S3")


def sdk_environment(url: str) -> dict[str, str]:
    """The AWS SDK's variables that point every client at the stand-in, whatever the user's own configuration says."""
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
    """The environment with none of the SDK's variables: a profile or a session token would win over ours."""
    return {name: value for name, value in environment.items() if not name.startswith("AWS_")}
