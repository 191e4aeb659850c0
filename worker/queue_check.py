"""Whether the dead-letter queue is another queue than the main one, in every way in which it can be configured.

If it is the same, a message that cannot be delivered circles: the worker receives its own dead letters for ever.
"""

import json
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

ATTRIBUTES: Final = ("QueueArn", "RedrivePolicy")
"""The attributes of each queue that `find_circle` takes."""


def is_same_queue(one: str, other: str) -> bool:
    """Whether two URLs of one Region name the same queue: only its account and name count, not how it is reached."""
    return _account_and_name(one) == _account_and_name(other)


def find_circle(queue: Mapping[str, str], dead_letter_queue: Mapping[str, str]) -> str | None:
    """What circles, and what to change; None if nothing does. Attributes that could not be read are absent."""
    arn = queue.get("QueueArn")
    if arn is None:
        return None
    if _target(queue) == arn:
        return f"the redrive policy of GATECAST_QUEUE_URL names that queue itself ({arn}): expected another queue there"
    if dead_letter_queue.get("QueueArn") == arn:
        return f"GATECAST_DEAD_LETTER_QUEUE_URL and GATECAST_QUEUE_URL are the same queue ({arn}): expected two"
    if _target(dead_letter_queue) == arn:
        return (
            "the redrive policy of GATECAST_DEAD_LETTER_QUEUE_URL moves its messages back to GATECAST_QUEUE_URL "
            f"({arn}): remove that policy"
        )
    return None


def _account_and_name(url: str) -> tuple[str, ...]:
    return tuple(part for part in urlsplit(url).path.split("/") if part)[-2:]


def _target(attributes: Mapping[str, str]) -> str | None:
    try:
        policy = json.loads(attributes.get("RedrivePolicy", "null"))
    except ValueError:
        return None
    return policy.get("deadLetterTargetArn") if isinstance(policy, dict) else None
