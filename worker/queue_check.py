"""Whether the dead-letter queue is another queue than the main one, in every way in which it can be configured.

If it is the same, a message that cannot be delivered circles: the worker receives its own dead letters for ever.
"""

import json
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

ATTRIBUTES: Final = ("QueueArn", "RedrivePolicy")
"""The attributes of both queues that `find_circle` takes."""


def is_same_queue(one: str, other: str) -> bool:
    """Whether two URLs of one Region name the same queue: only its account and name count, not how it is reached."""
    return _account_and_name(one) == _account_and_name(other)


def find_circle(queue: Mapping[str, str], dead_letter_queue: Mapping[str, str]) -> str | None:
    """What circles, as the end of a sentence that begins with the dead-letter queue; None if nothing does."""
    arn, dead_letter_arn = queue.get("QueueArn"), dead_letter_queue.get("QueueArn")
    if arn is None:
        return None
    if arn == dead_letter_arn:
        return f"is {arn}, the queue itself"
    if _target(dead_letter_queue) == arn:
        return f"has a redrive policy that moves its messages back to {arn}: remove that policy"
    if _target(queue) == arn:
        return f"of the redrive policy of {arn} is that queue itself: correct the policy"
    return None


def _account_and_name(url: str) -> tuple[str, ...]:
    return tuple(part for part in urlsplit(url).path.split("/") if part)[-2:]


def _target(attributes: Mapping[str, str]) -> str | None:
    try:
        policy = json.loads(attributes.get("RedrivePolicy", "null"))
    except ValueError:
        return None
    return policy.get("deadLetterTargetArn") if isinstance(policy, dict) else None
