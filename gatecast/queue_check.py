"""Whether the worker's queues are different ones, in every way in which they can be configured.

If the dead-letter queue is the main one, a message that cannot be delivered circles: the worker receives its own dead
letters for ever. Receipts on one of these two would be poison.
"""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit

ATTRIBUTES: Final = ("QueueArn", "RedrivePolicy")
"""The attributes of each queue that `find_circle` takes."""


def is_same_queue(one: str, other: str) -> bool:
    """Whether two URLs of one Region name the same queue: only its account and name count, not how it is reached."""
    return _account_and_name(one) == _account_and_name(other)


def find_circle(
    queue: Mapping[str, str],
    dead_letter_queue: Mapping[str, str],
    receipts_queue: Mapping[str, str] = MappingProxyType({}),
) -> str | None:
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
    return _find_misplaced_receipts(arn, dead_letter_queue, receipts_queue)


def _find_misplaced_receipts(
    arn: str, dead_letter_queue: Mapping[str, str], receipts_queue: Mapping[str, str]
) -> str | None:
    others = {"GATECAST_QUEUE_URL": arn, "GATECAST_DEAD_LETTER_QUEUE_URL": dead_letter_queue.get("QueueArn")}
    for name, other in others.items():
        if other is not None and receipts_queue.get("QueueArn") == other:
            return f"GATECAST_RECEIPTS_QUEUE_URL and {name} are the same queue ({other}): expected two"
    if _target(receipts_queue) == arn:
        return (
            "the redrive policy of GATECAST_RECEIPTS_QUEUE_URL moves its messages to GATECAST_QUEUE_URL "
            f"({arn}): expected another queue there"
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
