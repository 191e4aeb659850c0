"""CloudFormation stacks: create or update them according to their templates, and remove them.

Every operation is idempotent, and resumes where an earlier run was interrupted.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from botocore.exceptions import ClientError

from deploy.ecs.states import SUCCEEDED, Action, action, explanation

TEMPLATES: Final = Path(__file__).parent
POLL_SECONDS: Final = 3.0
_STARTED: Final = {"CREATE_IN_PROGRESS", "UPDATE_IN_PROGRESS", "DELETE_IN_PROGRESS"}


class DeployError(Exception):
    """The deployment failed. The message is for a person: what is wrong, and what to do."""


class Parameter(NamedTuple):
    """A parameter of a template; required if it has no default."""

    name: str
    default: str | None


class _Failure(NamedTuple):
    resource: str
    line: str


class Stacks:
    """The stacks of one deployment, through a boto3 CloudFormation client. `say` prints progress for a person."""

    def __init__(
        self,
        cloudformation: Any,
        name: str,
        *,
        say: Callable[[str], None],
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._cloudformation = cloudformation
        self._name = name
        self._say = say
        self._poll_seconds = poll_seconds

    def parameters(self, template: str) -> list[Parameter]:
        """The parameters of the template of that name."""
        summary = self._cloudformation.get_template_summary(TemplateBody=_body(template))
        return [Parameter(each["ParameterKey"], each.get("DefaultValue")) for each in summary["Parameters"]]

    def deploy(self, template: str, values: Mapping[str, str]) -> dict[str, str]:
        """Create or update the stack, with those of the values that its template takes. Returns its outputs.

        Raises DeployError with CloudFormation's reason for each resource that failed.
        """
        arguments = {
            "StackName": self._stack(template),
            "TemplateBody": _body(template),
            "Capabilities": ["CAPABILITY_IAM"],
            "Tags": [{"Key": "gatecast", "Value": self._name}],
            "Parameters": [
                {"ParameterKey": name, "ParameterValue": self._value(template, name, default, values)}
                for name, default in self.parameters(template)
            ],
        }
        before = self._settled(template)
        match action(before):
            case Action.EXPLAIN:
                raise self._stuck(template, str(before))
            case Action.REPLACE:
                self._say(f"{template}: removing what a failed attempt left behind ({before})")
                self._delete(template)
                creates = True
            case Action.CREATE:
                creates = True
            case Action.UPDATE | Action.WAIT:  # `_settled` has waited
                creates = False
        started_at = time.monotonic()
        if creates:
            # what failed is kept for inspection; the next attempt removes it
            self._cloudformation.create_stack(**arguments, OnFailure="DO_NOTHING")
        elif not self._update(arguments):
            self._say(f"{template}: unchanged")
            return self.outputs(template)
        status = self._settled(template)
        if status not in SUCCEEDED:
            raise self._stuck(template, str(status))
        self._say(f"{template}: {'created' if creates else 'updated'} in {time.monotonic() - started_at:.0f} s")
        return self.outputs(template)

    def outputs(self, template: str) -> dict[str, str]:
        """The stack's outputs; empty if it does not exist."""
        description = self._describe(template) or {}
        return {output["OutputKey"]: output["OutputValue"] for output in description.get("Outputs", [])}

    def destroy(self, template: str) -> None:
        """Remove the stack and everything in it, if it exists."""
        if self._settled(template) is None:
            return
        self._say(f"{template}: removing")
        self._delete(template)

    def _value(self, template: str, name: str, default: str | None, values: Mapping[str, str]) -> str:
        value = values.get(name, default)
        if value is None:
            raise DeployError(f"{template}: the parameter {name} is missing")
        return value

    def _update(self, arguments: dict[str, Any]) -> bool:
        try:
            self._cloudformation.update_stack(**arguments)
        except ClientError as error:
            if "No updates are to be performed" in error.response["Error"]["Message"]:
                return False
            raise
        return True

    def _delete(self, template: str) -> None:
        stack = self._stack(template)
        self._cloudformation.delete_stack(StackName=stack)
        status = self._settled(template)
        if status is not None:
            raise self._stuck(template, status)

    def _stuck(self, template: str, status: str) -> DeployError:
        failures = self._failures(template)
        lines = [f"{template}: {status}", *(failure.line for failure in failures)]
        if action(status) is Action.EXPLAIN:
            lines.append(explanation(self._stack(template), status, [failure.resource for failure in failures]))
        return DeployError("\n".join(lines))

    def _settled(self, template: str) -> str | None:
        """Wait until no operation is in progress. Returns the stack's status; None if the stack does not exist."""
        while True:
            description = self._describe(template)
            if description is None:
                return None
            status: str = description["StackStatus"]
            if not status.endswith("_IN_PROGRESS") or status == "REVIEW_IN_PROGRESS":
                return status
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
        # the latest event comes first
        for event in self._cloudformation.describe_stack_events(StackName=stack)["StackEvents"]:
            name, status = event["LogicalResourceId"], event["ResourceStatus"]
            reason = event.get("ResourceStatusReason", "")
            if name == stack:
                if status in _STARTED:
                    break
            elif status.endswith("_FAILED") and "cancelled" not in reason:
                found.append(_Failure(name, f"  {name} ({event['ResourceType']}): {reason}"))
        return found[::-1]

    def _stack(self, template: str) -> str:
        return f"{self._name}-{template}"


def _body(template: str) -> str:
    return (TEMPLATES / f"{template}.yaml").read_text()
