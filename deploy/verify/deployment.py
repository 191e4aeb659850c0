"""The stack of one run: it is made, removed, and, if a run was killed, found and removed later.

Everything that a run makes is in this one stack, so nothing is left once the stack is deleted.
"""

import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from deploy.ecs.stacks import POLL_SECONDS, DeployError, Stacks

TEMPLATE: Final = "probe"
FOLDER: Final = Path(__file__).parent
PREFIX: Final = "gatecast-verify-"

_STACK: Final = re.compile(rf"({PREFIX}[0-9a-f]{{8}})-{TEMPLATE}")
_TAG: Final = "gatecast"


def new_name() -> str:
    """A name for the stack of a new run."""
    return f"{PREFIX}{secrets.token_hex(4)}"


class Deployment:
    """The stack `NAME-probe`, through a boto3 session. `say` prints progress for a person."""

    def __init__(
        self, session: Any, name: str, *, say: Callable[[str], None], poll_seconds: float = POLL_SECONDS
    ) -> None:
        cloudformation = session.client("cloudformation")
        self.name = name
        self._say = say
        self._region = session.region_name
        self._poll_seconds = poll_seconds
        self._stacks = Stacks(cloudformation, name, say=say, poll_seconds=poll_seconds, folder=FOLDER)

    @property
    def removal(self) -> str:
        """How a person removes the stack."""
        return f"remove it with `make verify-aws TARGET=aws REGION={self._region} DESTROY={self.name}`"

    def deploy(self) -> dict[str, str]:
        """Make the stack, and return its outputs. Raises DeployError, and the SDK's exceptions."""
        try:
            return self._stacks.deploy(TEMPLATE, {})
        except KeyboardInterrupt:
            time.sleep(self._poll_seconds)  # CloudFormation may have received the call, and does not show it at once
            raise

    def destroy(self) -> str | None:
        """Remove the stack, if it exists. What is left over, and how to remove it; None if nothing is.

        It never raises: a failure, or an interruption, must be reported together with the name of the stack.
        """
        try:
            self._stacks.destroy(TEMPLATE)
        except (DeployError, ClientError, BotoCoreError) as error:
            reason = str(error)
        except KeyboardInterrupt:
            reason = "its deletion was interrupted"
        else:
            return None
        left = f"the stack {self.name}-{TEMPLATE}, {reason}; {self.removal}"
        self._say(f"Left over: {left}")
        return left


def left_behind(cloudformation: Any) -> list[str]:
    """The names of all runs whose stack still exists: those of killed runs, and of runs in progress."""
    pages = cloudformation.get_paginator("describe_stacks").paginate()
    found = []
    for stack in (each for page in pages for each in page["Stacks"]):
        match = _STACK.fullmatch(stack["StackName"])
        tags = {tag["Key"]: tag["Value"] for tag in stack.get("Tags", [])}
        if match and tags.get(_TAG) == match[1] and stack["StackStatus"] != "DELETE_COMPLETE":
            found.append(match[1])
    return found
