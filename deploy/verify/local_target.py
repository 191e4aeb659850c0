"""The target on this machine: the template's function on the emulator of API Gateway, its queue on ministack.

Only this module of the package imports the local stack. It needs no account, and reaches nothing but 127.0.0.1.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final

from botocore.exceptions import ClientError

from deploy.ecs.stacks import DeployError
from deploy.verify.deployment import Deployment
from deploy.verify.function import handler
from deploy.verify.masking import Masker
from deploy.verify.target import Durations, Events, Stage, Target
from deploy.verify.wire import Keys
from gatecast.emulator.authorizer import Authorizer
from gatecast.emulator.integration import Mock, Route
from gatecast.emulator.limits import Limits
from gatecast.emulator.server import Gateway
from local.aws_environment import CREDENTIALS, REGION, without_aws
from local.ministack import Ministack

SERVICES: Final = ("apigateway", "cloudformation", "iam", "lambda", "logs", "sqs")
POLL_SECONDS: Final = 0.05
DURATIONS: Final = Durations(idle_seconds=2.0, keep_alive_seconds=2.0, settle_seconds=0.5, hold_seconds=1.0)
NOT_ASKED: Final = {
    "throttle": "The emulator throttles the account alone, neither stages nor routes",
}

_ROUTES: Final = {
    "$connect": Route(handler),
    "$disconnect": Route(handler),
    "echo": Route(handler, response=True),
    "silent": Route(handler),
    "quiet": Route(handler, response=True),
    "sized": Route(handler, response=True),
    "ping": Route(Mock({"type": "pong"}, repeats=("ref",)), response=True),
}


def use_only(ministack: Ministack) -> None:
    """Point the SDK at ministack in this process. No credentials or settings of the reader remain."""
    environment = without_aws(os.environ)
    os.environ.clear()
    os.environ.update({**environment, **ministack.environment(), "AWS_ENDPOINT_URL": ministack.url})


def deploy(deployment: Deployment, sqs: Any) -> tuple[str, str]:
    """Make the stack on ministack, or only its queue if ministack rejects it: the queue's URL, and a line about it."""
    try:
        url = deployment.deploy()["QueueUrl"]
    except (DeployError, ClientError, KeyError) as error:
        reason = " ".join(str(error).split())
        url = sqs.create_queue(QueueName=deployment.name)["QueueUrl"]
        return url, f"ministack does not make the template, so that only a queue was made: {reason}"
    return url, "ministack made the whole template with CloudFormation; its queue is used here"


@asynccontextmanager
async def opened(sqs: Any, queue_url: str, masker: Masker, durations: Durations = DURATIONS) -> AsyncIterator[Target]:
    """The target; the function sends its events to the queue. Call `use_only` before."""
    os.environ["QUEUE_URL"] = queue_url
    keys = Keys(CREDENTIALS.access_key_id, CREDENTIALS.secret_access_key)
    masker.add(keys.secret_access_key, queue_url)
    limits = Limits(idle_seconds=durations.idle_seconds)
    async with (
        Gateway(_ROUTES, limits=limits) as main,
        Gateway(_ROUTES, limits=limits, authorizer=Authorizer(handler)) as authorized,
    ):
        yield Target(
            main=Stage(main.url, main.endpoint),
            authorized=Stage(authorized.url, authorized.endpoint),
            events=Events(sqs, queue_url),
            keys=lambda: keys,
            region=REGION,
            now=lambda: datetime.now(UTC),
            durations=durations,
            not_asked=NOT_ASKED,
            masker=masker,
        )
