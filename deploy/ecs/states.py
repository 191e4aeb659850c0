"""What to do with a stack, by the state in which CloudFormation left it. Pure.

A test compares the states with CloudFormation's own, so that a new one is decided here.
"""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Final, Literal, TypeAlias, TypeGuard, assert_never, get_args

Status: TypeAlias = Literal[
    "CREATE_IN_PROGRESS",
    "CREATE_FAILED",
    "CREATE_COMPLETE",
    "ROLLBACK_IN_PROGRESS",
    "ROLLBACK_FAILED",
    "ROLLBACK_COMPLETE",
    "DELETE_IN_PROGRESS",
    "DELETE_FAILED",
    "DELETE_COMPLETE",
    "UPDATE_IN_PROGRESS",
    "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS",
    "UPDATE_COMPLETE",
    "UPDATE_FAILED",
    "UPDATE_ROLLBACK_IN_PROGRESS",
    "UPDATE_ROLLBACK_FAILED",
    "UPDATE_ROLLBACK_COMPLETE_CLEANUP_IN_PROGRESS",
    "UPDATE_ROLLBACK_COMPLETE",
    "REVIEW_IN_PROGRESS",
    "IMPORT_IN_PROGRESS",
    "IMPORT_COMPLETE",
    "IMPORT_ROLLBACK_IN_PROGRESS",
    "IMPORT_ROLLBACK_FAILED",
    "IMPORT_ROLLBACK_COMPLETE",
]
STATUSES: Final[tuple[Status, ...]] = get_args(Status)


class Action(Enum):
    """What the script does before it creates or updates a stack in this state."""

    CREATE = "create it"
    UPDATE = "update it"
    REPLACE = "delete what a failed first attempt left, and create it"
    WAIT = "wait until the operation in progress has ended"
    EXPLAIN = "stop, and print what a person has to do"


def is_known(status: str) -> TypeGuard[Status]:
    """Whether it is one of STATUSES."""
    return status in STATUSES


def action(status: Status | None) -> Action:
    """What to do with a stack in this state; None if it does not exist."""
    match status:
        case None | "DELETE_COMPLETE":
            return Action.CREATE
        case (
            "CREATE_IN_PROGRESS"
            | "ROLLBACK_IN_PROGRESS"
            | "DELETE_IN_PROGRESS"
            | "UPDATE_IN_PROGRESS"
            | "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS"
            | "UPDATE_ROLLBACK_IN_PROGRESS"
            | "UPDATE_ROLLBACK_COMPLETE_CLEANUP_IN_PROGRESS"
            | "IMPORT_IN_PROGRESS"
            | "IMPORT_ROLLBACK_IN_PROGRESS"
        ):
            return Action.WAIT
        case "CREATE_COMPLETE" | "UPDATE_COMPLETE" | "IMPORT_COMPLETE":
            return Action.UPDATE
        # After a failed update: the stack is as it was before, or partly updated, and can be updated.
        case "UPDATE_ROLLBACK_COMPLETE" | "IMPORT_ROLLBACK_COMPLETE" | "UPDATE_FAILED":
            return Action.UPDATE
        # The first creation or a deletion failed, or a change set created a stack without resources. None of these ends
        # by itself, in spite of the last one's name.
        case "CREATE_FAILED" | "ROLLBACK_COMPLETE" | "ROLLBACK_FAILED" | "DELETE_FAILED" | "REVIEW_IN_PROGRESS":
            return Action.REPLACE
        case "UPDATE_ROLLBACK_FAILED" | "IMPORT_ROLLBACK_FAILED":
            return Action.EXPLAIN
        case _ as never:
            assert_never(never)


_AFTER_CREATION: Final = "Remove the cause, and deploy again: that first deletes what this attempt left."
_WAYS_OUT: Final[Mapping[Status, str]] = {
    "CREATE_FAILED": _AFTER_CREATION,
    "ROLLBACK_COMPLETE": _AFTER_CREATION,
    "ROLLBACK_FAILED": _AFTER_CREATION,
    "REVIEW_IN_PROGRESS": "A change set has created {stack}, and nothing in it. Deploy again, which deletes it first.",
    "UPDATE_ROLLBACK_COMPLETE": "CloudFormation has restored the previous version. Remove the cause, and deploy again.",
    "UPDATE_FAILED": """\
Some resources are updated, others are not. Remove the cause, and deploy again; or restore the last version:
  aws cloudformation rollback-stack --stack-name {stack}""",
    "UPDATE_ROLLBACK_FAILED": """\
CloudFormation could neither update {stack} nor undo that. Remove the cause of these failures, then
  aws cloudformation continue-update-rollback --stack-name {stack}
and deploy again. If the cause cannot be removed, leave these resources as they are:
  aws cloudformation continue-update-rollback --stack-name {stack} --resources-to-skip {resources}""",
    "DELETE_FAILED": """\
Remove the cause, and run this again. Or delete the stack without these resources, and delete them yourself:
  aws cloudformation delete-stack --stack-name {stack} --retain-resources {resources}""",
    "IMPORT_ROLLBACK_FAILED": """\
Resources were imported into {stack}, which this script never does, and CloudFormation could not undo that.
It documents no command for this state: see the stack's events, and ask AWS Support.""",
}


def way_out(stack: str, status: Status, failed: Sequence[str]) -> str:
    """What a person can do about a stack that an operation left in this state; empty if there is nothing to do.

    `failed` are the resources that cause it, by their names in the template.
    """
    return _WAYS_OUT.get(status, "").format(stack=stack, resources=" ".join(failed) or "RESOURCE …")
