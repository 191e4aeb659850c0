"""The environment of handlers that run in the emulator's process, and how their AWS SDK reaches the emulator.

Most handlers make the endpoint of `@connections` from their event (`https://{domainName}/{stage}`) or read it from a
variable. The SDK would speak TLS to the first; its requests to the emulator are sent without.
"""

import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

ENDPOINT_VARIABLE: Final = "AWS_ENDPOINT_URL_APIGATEWAYMANAGEMENTAPI"
_INVENTED: Final = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"}
_CREDENTIALS: Final = (
    "AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)  # fmt: skip
_FILES: Final = (
    ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
    ("AWS_CONFIG_FILE", "~/.aws/config"),
)
_emulators: Final[set[str]] = set()
_hooked = False


def variables(
    given: Mapping[str, str], *, endpoint: str, url: str, region: str, environ: Mapping[str, str]
) -> dict[str, str]:
    """What is added to `environ`: the given variables, and what an SDK needs that is not there.

    `{endpoint}`, `{url}` and `{host}` in a given value are the emulator's addresses. Where there are no credentials,
    invented ones are added, for an SDK that signs. Credentials and Regions of the reader's own stay.
    """
    places = {"{endpoint}": endpoint, "{url}": url, "{host}": urlsplit(endpoint).netloc}
    added = {name: _filled(value, places) for name, value in given.items()}
    together = {**environ, **added}
    if ENDPOINT_VARIABLE not in together:
        added[ENDPOINT_VARIABLE] = endpoint
    regions = [together[name] for name in ("AWS_REGION", "AWS_DEFAULT_REGION") if together.get(name)] or [region]
    added |= {name: regions[0] for name in ("AWS_REGION", "AWS_DEFAULT_REGION") if not together.get(name)}
    if not any(together.get(name) for name in _CREDENTIALS) and not any(_credential_files(together)):
        added |= _INVENTED
    return added


def _filled(text: str, places: Mapping[str, str]) -> str:
    for place, value in places.items():
        text = text.replace(place, value)
    return text


def invented(region: str) -> dict[str, str]:
    """Credentials and a Region for tests, which then reach no account."""
    return {**_INVENTED, "AWS_REGION": region, "AWS_DEFAULT_REGION": region}


def redirect_sdk(endpoint: str) -> None:
    """From now on, sessions of botocore in this process send what is for this endpoint without TLS.

    It has no effect on clients that were made before, and none where botocore is not installed.
    """
    global _hooked  # noqa: PLW0603 - botocore's list of handlers is one for the process
    _emulators.add(urlsplit(endpoint).netloc)
    if _hooked or find_spec("botocore") is None:
        return
    _hooked = True
    from botocore.handlers import BUILTIN_HANDLERS  # noqa: PLC0415 - only where it is installed

    hook = ("before-send.apigatewaymanagementapi", _without_tls)
    BUILTIN_HANDLERS.append(hook)
    boto3 = sys.modules.get("boto3")
    if boto3 and boto3.DEFAULT_SESSION:
        boto3.DEFAULT_SESSION.events.register(*hook)


def _without_tls(request: Any, **_: object) -> None:
    parts = urlsplit(request.url)
    if parts.scheme == "https" and parts.netloc in _emulators:
        request.url = parts._replace(scheme="http").geturl()


def _credential_files(environ: Mapping[str, str]) -> Iterator[bool]:
    for variable, default in _FILES:
        try:
            yield Path(environ.get(variable) or default).expanduser().is_file()
        except (OSError, RuntimeError):  # no home directory
            yield False
