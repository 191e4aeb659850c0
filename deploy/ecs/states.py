"""What to do with a stack, by the state in which CloudFormation left it. Pure."""

from enum import Enum
from typing import Final


class Action(Enum):
    """What the script does before it creates or updates a stack in this state."""

    CREATE = "create it"
    UPDATE = "update it"
    REPLACE = "delete what a failed first attempt left, and create it"
    WAIT = "wait until the operation in progress has ended"
    EXPLAIN = "stop, and say what a person has to do"


_ACTIONS: Final = {
    "CREATE_COMPLETE": Action.UPDATE,
    "UPDATE_COMPLETE": Action.UPDATE,
    "UPDATE_ROLLBACK_COMPLETE": Action.UPDATE,  # the update failed, and the stack is as it was before
    "IMPORT_COMPLETE": Action.UPDATE,
    "IMPORT_ROLLBACK_COMPLETE": Action.UPDATE,
    "UPDATE_FAILED": Action.UPDATE,  # a failed update without rollback: the next one continues from there
    "DELETE_COMPLETE": Action.CREATE,
    "CREATE_FAILED": Action.REPLACE,
    "ROLLBACK_COMPLETE": Action.REPLACE,
    "ROLLBACK_FAILED": Action.REPLACE,
    "DELETE_FAILED": Action.REPLACE,
    "REVIEW_IN_PROGRESS": Action.REPLACE,  # a change set that created nothing
    "UPDATE_ROLLBACK_FAILED": Action.EXPLAIN,
    "IMPORT_ROLLBACK_FAILED": Action.EXPLAIN,
}

SUCCEEDED: Final = frozenset({"CREATE_COMPLETE", "UPDATE_COMPLETE"})


def action(status: str | None) -> Action:
    """What to do with a stack in this state; None if it does not exist. An unknown state is explained."""
    if status is None:
        return Action.CREATE
    if status in _ACTIONS:
        return _ACTIONS[status]
    return Action.WAIT if status.endswith("_IN_PROGRESS") else Action.EXPLAIN


def explanation(stack: str, status: str, failed: list[str]) -> str:
    """The way out of a state in which CloudFormation accepts no update. `failed` are resources that block it."""
    names = " ".join(failed)
    match status:
        case "UPDATE_ROLLBACK_FAILED":
            skip = f" --resources-to-skip {names}" if names else ""
            return (
                f"CloudFormation could neither update {stack} nor undo that. Remove the cause of these failures, then\n"
                f"  aws cloudformation continue-update-rollback --stack-name {stack}\n"
                "and deploy again. If the cause cannot be removed, leave these resources as they are:\n"
                f"  aws cloudformation continue-update-rollback --stack-name {stack}{skip}"
            )
        case "IMPORT_ROLLBACK_FAILED":
            return (
                f"Resources were imported into {stack}, and CloudFormation could not undo that. See its events,\n"
                f"and continue with: aws cloudformation continue-update-rollback --stack-name {stack}"
            )
    return f"{stack} is in the state {status}, which this script does not know: see its events in the console"
