"""What commands find in their environment: the queues, the table, and clients of AWS.

These are the variables of the worker and the routes, and the SDK's own. The SDK is imported when a client is made.
"""

import difflib
import os
import re
from collections.abc import Mapping
from typing import Any, Final

from gatecast.addresses import is_queue_url, region_of
from gatecast.cli.failures import REMEDIES, Cause, CommandFailed, WrongUsage, explained
from gatecast.queue_check import is_same_queue

QUEUE: Final = "GATECAST_QUEUE_URL"
DEAD_LETTER_QUEUE: Final = "GATECAST_DEAD_LETTER_QUEUE_URL"
TABLE: Final = "GATECAST_TABLE"
ENDPOINT: Final = "GATECAST_CONNECTIONS_ENDPOINT"
BUCKET: Final = "GATECAST_PAYLOAD_BUCKET"
RECEIPTS_QUEUE: Final = "GATECAST_RECEIPTS_QUEUE_URL"
_NAMES: Final = (QUEUE, DEAD_LETTER_QUEUE, RECEIPTS_QUEUE, TABLE, ENDPOINT, BUCKET)
_TABLE: Final = re.compile(r"[A-Za-z0-9_.\-]{3,255}")
_REGION: Final = re.compile(r"(?![0-9]+\Z)(?!-)[A-Za-z0-9\-]{1,63}(?<!-)")
"""What the SDK accepts as part of a host name."""
_TIMEOUTS: Final = {"connect_timeout": 5, "read_timeout": 15}


def required(name: str) -> str:
    """The variable's value. Raises WrongUsage if it is missing or empty."""
    if value := os.environ.get(name, ""):
        return value
    raise WrongUsage(f"{name} is missing{misspelt(name, os.environ)}", EXPECTED[name])


def misspelt(name: str, environ: Mapping[str, str]) -> str:
    """A hint at a variable that is set, and that may be meant to be this one; empty if there is none."""
    others = [each for each in environ if each.startswith("GATECAST") and each not in _NAMES]
    near = difflib.get_close_matches(name, others, n=1, cutoff=0.8)
    return f" ({near[0]} is set)" if near else ""


def queue_url(name: str = QUEUE) -> str:
    """Raises WrongUsage."""
    url = required(name)
    if not is_queue_url(url):
        raise WrongUsage(f"{name} is {shown(url)}", EXPECTED[name])
    return url


def both_queue_urls() -> tuple[str, str]:
    """Of the dead-letter queue, and of the queue. Raises WrongUsage if they name the same one, too."""
    source, target = queue_url(DEAD_LETTER_QUEUE), queue_url(QUEUE)
    if is_same_queue(source, target):
        raise WrongUsage(f"{DEAD_LETTER_QUEUE} and {QUEUE} name the same queue", "set two different queues")
    return source, target


def table_name() -> str:
    """Raises WrongUsage."""
    name = required(TABLE)
    if not is_table_name(name):
        raise WrongUsage(f"{TABLE} is {shown(name)}", EXPECTED[TABLE])
    return name


def is_table_name(text: str) -> bool:
    return _TABLE.fullmatch(text) is not None


def session() -> Any:
    """The SDK's session (boto3). AWS_REGION takes precedence, although the SDK ignores it. Raises CommandFailed.

    Credentials are found, and renewed if they have to be: if that fails, the SDK would raise anything.
    """
    import boto3
    from botocore.exceptions import BotoCoreError

    try:
        made = boto3.session.Session(region_name=os.environ.get("AWS_REGION") or None)
    except (BotoCoreError, ValueError) as error:
        raise WrongUsage(f"AWS_PROFILE or the SDK's files are wrong ({error})", "run aws configure list") from None
    check_region(made.region_name or "")
    return made


def check_region(region: str) -> None:
    """Raises WrongUsage unless it is a Region's name, and that of each URL that shows one."""
    if not region:
        raise WrongUsage("AWS_REGION is missing", "set it to the Region of the queue, the table and the API")
    if not _REGION.fullmatch(region):
        raise WrongUsage(f"the Region is {shown(region)}", "set AWS_REGION to a Region's name, such as eu-west-1")
    for name, url in os.environ.items():
        if name in _NAMES or name.startswith("AWS_ENDPOINT_URL"):
            found = region_of(url)
            if found not in (None, region):
                raise WrongUsage(
                    f"{name} is in the Region {found}, but AWS_REGION is {region}",
                    "queues, table and API must be in one Region; set AWS_REGION to it",
                )


def check_credentials(made: Any) -> Any:
    """The session's credentials. Raises CommandFailed if there are none, or none that can be used."""
    with explained():
        try:
            found = made.get_credentials()
            frozen = found.get_frozen_credentials() if found is not None else None
            usable = frozen is not None and isinstance(frozen.access_key, str) and isinstance(frozen.secret_key, str)
        except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
            expired = isinstance(error, RuntimeError) and "expired" in str(error)
            cause = Cause.EXPIRED_CREDENTIALS if expired else Cause.NO_CREDENTIALS
            what = "have expired" if expired else f"cannot be read ({type(error).__name__})"
            raise CommandFailed(f"the AWS credentials {what}", REMEDIES[cause]) from error
    if not usable:
        raise CommandFailed("there are no AWS credentials", REMEDIES[Cause.NO_CREDENTIALS])
    return found


def client(service: str, made: Any = None, *, attempts: int = 3, **options: Any) -> Any:
    """A boto3 client. Raises CommandFailed if there is no Region, or if credentials cannot be used."""
    from botocore.config import Config

    if made is None:
        made = session()
        check_credentials(made)
    config = Config(retries={"mode": "standard", "total_max_attempts": attempts}, **_TIMEOUTS)
    with explained():
        try:
            return made.client(service, config=config, **options)
        except ValueError as error:
            raise WrongUsage(f"the SDK's settings are wrong ({error})", "check AWS_ENDPOINT_URL…") from None


def shown(value: str) -> str:
    """The value for an error message, without a password that a URL may contain."""
    return repr(re.sub(r"//[^/]*@", "//…@", value))


EXPECTED: Final[Mapping[str, str]] = {
    QUEUE: "set it to the URL of the SQS queue, the output QueueUrl of the stack data",
    DEAD_LETTER_QUEUE: "set it to the URL of the dead-letter queue, the output DeadLetterQueueUrl of the stack data",
    TABLE: "set it to the DynamoDB table's name, the output TableName of the stack data",
    ENDPOINT: "set it to the API's address, https://{api}.execute-api.{region}.amazonaws.com/{stage}, or a custom "
    "domain and its base path",
    RECEIPTS_QUEUE: "set it to the URL of the queue of receipts, the output ReceiptsQueueUrl of the stack data",
    BUCKET: "set it to the bucket of large payloads, the output PayloadBucket of the stack data",
}
