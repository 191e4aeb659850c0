"""CloudFormation stacks: create or update them according to their templates, and remove them.

Every operation is idempotent, and resumes where an earlier run was interrupted.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, NamedTuple, assert_never

from botocore.exceptions import ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as NoConnection

from deploy.ecs.states import Action, Status, action, is_known, way_out

TEMPLATES: Final = Path(__file__).parent
POLL_SECONDS: Final = 3.0
_STARTED: Final = {"CREATE_IN_PROGRESS", "UPDATE_IN_PROGRESS", "DELETE_IN_PROGRESS"}
_ROLLS_BACK: Final = {"ROLLBACK_IN_PROGRESS", "UPDATE_ROLLBACK_IN_PROGRESS"}
_SUCCEEDED: Final = {"CREATE_COMPLETE", "UPDATE_COMPLETE"}
_REJECTED: Final = {"ValidationError", "InsufficientCapabilitiesException", "LimitExceededException"}


class DeployError(Exception):
    """The deployment failed. The message is for a person: what is wrong, and what to do."""


class Parameter(NamedTuple):
    """A parameter of a template; required if it has no default."""

    name: str
    default: str | None


class _Failure(NamedTuple):
    resource: str
    line: str
    blocks: bool
    """Whether it happened in the last phase of the operation: a rollback, if there was one."""


class Stacks:
    """The stacks of one deployment, through a boto3 CloudFormation client. `say` prints progress for a person.

    Templates are files in `folder`.
    """

    def __init__(
        self,
        cloudformation: Any,
        name: str,
        *,
        say: Callable[[str], None],
        poll_seconds: float = POLL_SECONDS,
        folder: Path = TEMPLATES,
    ) -> None:
        self._cloudformation = cloudformation
        self._folder = folder
        self._name = name
        self._say = say
        self._poll_seconds = poll_seconds

    def parameters(self, template: str) -> list[Parameter]:
        """The parameters of the template of that name."""
        summary = self._cloudformation.get_template_summary(TemplateBody=self._body(template))
        return [Parameter(each["ParameterKey"], each.get("DefaultValue")) for each in summary["Parameters"]]

    def deploy(self, template: str, values: Mapping[str, str]) -> dict[str, str]:
        """Create or update the stack, with those of the values that its template takes. Returns its outputs.

        Raises DeployError with CloudFormation's reason for each resource that failed.
        """
        arguments = {
            "StackName": self._stack(template),
            "TemplateBody": self._body(template),
            "Capabilities": ["CAPABILITY_IAM"],
            "Tags": [{"Key": "gatecast", "Value": self._name}],
            "Parameters": [
                {"ParameterKey": name, "ParameterValue": self._value(template, name, default, values)}
                for name, default in self.parameters(template)
            ],
        }
        before = self._settled(template, announce=True)
        match action(before):
            case Action.CREATE:
                creates = True
            case Action.REPLACE:
                self._say(f"{template}: removing what a failed attempt left behind ({before})")
                self._delete(template)
                creates = True
            case Action.UPDATE | Action.WAIT:  # `_settled` has waited
                creates = False
            case Action.EXPLAIN:
                raise self._failed(template, before)
            case _ as never:
                assert_never(never)
        started_at = time.monotonic()
        # what a failed creation left is kept for inspection; the next attempt removes it
        extra = {"OnFailure": "DO_NOTHING"} if creates else {}
        call = self._cloudformation.create_stack if creates else self._cloudformation.update_stack
        if not self._submit(template, call, {**arguments, **extra}):
            self._say(f"{template}: unchanged")
            return self.outputs(template)
        status = self._settled(template)
        if status not in _SUCCEEDED:
            raise self._failed(template, status)
        self._say(f"{template}: {'created' if creates else 'updated'} in {time.monotonic() - started_at:.0f} s")
        return self.outputs(template)

    def outputs(self, template: str) -> dict[str, str]:
        """The stack's outputs; empty if it does not exist."""
        description = self._describe(template) or {}
        return {output["OutputKey"]: output["OutputValue"] for output in description.get("Outputs", [])}

    def status(self, template: str) -> str | None:
        """The stack's state at this moment; None if it does not exist."""
        description = self._describe(template)
        return None if description is None else description["StackStatus"]

    def destroy(self, template: str) -> None:
        """Remove the stack and everything in it, if it exists."""
        if self._settled(template, announce=True) is None:
            return
        self._say(f"{template}: removing")
        self._delete(template)

    def _value(self, template: str, name: str, default: str | None, values: Mapping[str, str]) -> str:
        value = values.get(name, default)
        if value is None:
            raise DeployError(f"{template}: the parameter {name} is missing")
        return value

    def _submit(self, template: str, call: Callable[..., Any], arguments: Mapping[str, Any]) -> bool:
        """Start an operation. Whether there is anything to do. Raises DeployError if CloudFormation rejects it."""
        try:
            call(**arguments)
        except ClientError as error:
            code, message = error.response["Error"]["Code"], error.response["Error"]["Message"]
            if "No updates are to be performed" in message:
                return False
            if code == "AlreadyExistsException" or "_IN_PROGRESS state" in message:
                raise DeployError(
                    f"{template}: another deployment of it has just started. Run this again, which waits for its end"
                ) from None
            if code in _REJECTED:
                raise DeployError(f"{template}: CloudFormation rejects the stack: {message}") from None
            raise
        return True

    def _delete(self, template: str) -> None:
        stack = self._stack(template)
        self._cloudformation.delete_stack(StackName=stack)
        status = self._settled(template)
        if status is not None:
            raise self._failed(template, status)

    def _failed(self, template: str, status: Status | None) -> DeployError:
        """The error for a stack that is in this state: what failed, and the way out."""
        if status is None:
            return DeployError(f"{template}: the stack was deleted while it was deployed")
        failures = self._failures(template)
        blocking = list(dict.fromkeys(failure.resource for failure in failures if failure.blocks))
        lines = [f"{template}: {status}", *(failure.line for failure in failures)]
        return DeployError("\n".join([*lines, *filter(None, [way_out(self._stack(template), status, blocking)])]))

    def _settled(self, template: str, *, announce: bool = False) -> Status | None:
        """Wait until no operation is in progress. Returns the stack's status; None if the stack does not exist.

        It also waits while CloudFormation is out of reach or throttles: the operation continues there. With `announce`,
        prints the operation that it waits for. Raises DeployError if the status is unknown.
        """
        connected = True
        while True:
            try:
                status = self.status(template)
            except (NoConnection, HTTPClientError, ClientError) as error:
                if isinstance(error, ClientError) and not _is_temporary(error):
                    raise
                if connected:
                    self._say(f"{template}: CloudFormation does not respond, retrying: {error}")
                connected = False
            else:
                connected = True
                if status is None:
                    return None
                if not is_known(status):
                    raise DeployError(
                        f"{template}: the stack is in the state {status}, which this script does not know"
                    )
                if action(status) is not Action.WAIT:
                    return status
                if announce:
                    self._say(f"{template}: waiting for an operation that is in progress ({status})")
                announce = False
            time.sleep(self._poll_seconds)

    def _describe(self, template: str) -> dict[str, Any] | None:
        try:
            stacks = self._cloudformation.describe_stacks(StackName=self._stack(template))["Stacks"]
        except ClientError as error:
            if "does not exist" in error.response["Error"]["Message"]:
                return None
            raise
        description: dict[str, Any] = stacks[0]
        return description

    def _failures(self, template: str) -> list[_Failure]:
        """The failures since the start of the last operation, the earliest first."""
        stack = self._stack(template)
        found: list[_Failure] = []
        last_phase = True
        for event in self._events(stack):  # the latest comes first
            name, status = event["LogicalResourceId"], event["ResourceStatus"]
            reason = event.get("ResourceStatusReason", "")
            if name == stack:
                if status in _STARTED:
                    break
                last_phase = last_phase and status not in _ROLLS_BACK
            elif status.endswith("_FAILED") and "cancelled" not in reason:
                found.append(_Failure(name, f"  {name} ({event['ResourceType']}): {reason}", last_phase))
        return found[::-1]

    def _events(self, stack: str) -> Iterator[dict[str, Any]]:
        page: dict[str, Any] = self._cloudformation.describe_stack_events(StackName=stack)
        yield from page["StackEvents"]
        while token := page.get("NextToken"):
            page = self._cloudformation.describe_stack_events(StackName=stack, NextToken=token)
            yield from page["StackEvents"]

    def _stack(self, template: str) -> str:
        return f"{self._name}-{template}"

    def _body(self, template: str) -> str:
        return (self._folder / f"{template}.yaml").read_text()


def _is_temporary(error: ClientError) -> bool:
    """Whether AWS throttled the call, or failed itself."""
    code, status = error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
    return status >= HTTPStatus.INTERNAL_SERVER_ERROR or "Throttl" in code or code == "RequestLimitExceeded"
