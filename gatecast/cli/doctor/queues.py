"""Checks of the queues: that they exist, and that messages which cannot be processed end somewhere."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from gatecast.cli.doctor.findings import Finding, failed, ok, skipped, warning
from gatecast.cli.environment import DEAD_LETTER_QUEUE, QUEUE
from gatecast.cli.failures import Cause, Problem, explain
from gatecast.publisher import is_fifo
from gatecast.queue_check import find_circle

RECEIVES: Final = 1_000
"""The lowest good maxReceiveCount: every release and every deployment counts as a receive."""
MAX_MESSAGE_BYTES: Final = 1024 * 1024
_CHECKS: Final = {QUEUE: "queue", DEAD_LETTER_QUEUE: "dead-letter queue"}


def read(sqs: Any, url: str) -> Mapping[str, str] | Problem:
    """The attributes of a queue, or why they cannot be read. Raises an error that is none of the SDK's."""
    try:
        found: Mapping[str, str] = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    except Exception as error:
        problem = explain(error)
        if problem is None:
            raise
        return problem
    return found


def unread(name: str, url: str, problem: Problem) -> Finding:
    """A queue that cannot be examined."""
    check = _CHECKS[name]
    if problem.cause is Cause.DENIED:
        return skipped(check, "its attributes may not be read", "allow sqs:GetQueueAttributes, or run this as another")
    if problem.cause is Cause.NO_QUEUE:
        return failed(check, f"{name} is {url!r}: there is no such queue", problem.remedy)
    return Finding.from_problem(check, problem)


def no_dead_letter_queue() -> Finding:
    return warning(
        "dead-letter queue",
        f"{DEAD_LETTER_QUEUE} is missing: what cannot be delivered is only logged",
        "set it to the output DeadLetterQueueUrl of the stack data",
    )


def circle() -> Finding:
    return failed(
        "dead-letter queue",
        f"{DEAD_LETTER_QUEUE} and {QUEUE} name the same queue: dead letters would circle",
        f"set {DEAD_LETTER_QUEUE} to another queue",
    )


def check_attributes(
    url: str, attributes: Mapping[str, str], dead_letter_attributes: Mapping[str, str]
) -> Iterator[Finding]:
    """Of the queue, beside those of the dead-letter queue, which are empty if they are not known."""
    if problem := find_circle(attributes, dead_letter_attributes):
        what, _, remedy = problem.rpartition(": ")
        yield failed("queue", what, remedy)
        return
    policy = _policy(attributes)
    target = str(policy.get("deadLetterTargetArn", ""))
    receives = int(policy.get("maxReceiveCount", 0) or 0)
    if not target:
        yield failed(
            "queue",
            "it has no redrive policy: a message that no worker can process circles until its retention ends",
            f"set its RedrivePolicy to the ARN of the dead-letter queue, with maxReceiveCount {RECEIVES} "
            "(aws sqs set-queue-attributes)",
        )
        return
    if receives < RECEIVES:
        yield warning(
            "queue",
            f"its redrive policy moves messages after {receives} receives, and every release is one",
            f"set maxReceiveCount to {RECEIVES}",
        )
    if int(attributes.get("MaximumMessageSize", MAX_MESSAGE_BYTES)) < MAX_MESSAGE_BYTES:
        yield warning(
            "queue",
            f"it rejects messages of more than {int(attributes['MaximumMessageSize']):,} bytes",
            f"set MaximumMessageSize to {MAX_MESSAGE_BYTES}",
        )
    kind = "FIFO" if is_fifo(url) else "standard"
    where = target.rpartition(":")[2]
    yield ok("queue", f"{kind}; after {receives:,} receives a message moves to {where}")


def _policy(attributes: Mapping[str, str]) -> Mapping[str, Any]:
    try:
        policy = json.loads(attributes.get("RedrivePolicy", "{}"))
    except ValueError:
        return {}
    return policy if isinstance(policy, dict) else {}
