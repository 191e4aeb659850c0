"""Checks of permissions: one call per action, which has no effect, or which the service must reject in the end.

A call that is rejected for another reason than a missing permission has passed that check. No document says in which
order SQS checks the two, so for SQS a missing permission may be hidden; it has not been observed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple

from gatecast import table as keys
from gatecast.cli.doctor.findings import Finding, failed, ok, warning
from gatecast.cli.failures import Cause, explain

_ROOM: Final = "@doctor"
"""No client can have a room of this name."""
_NEVER: Final = "attribute_exists(pk) AND attribute_not_exists(pk)"
_HANDLE: Final = "gatecast-doctor"
"""No receipt handle."""
RESOURCE: Final = "resource"
"""The check of a finding that is about the resource itself, and no permission."""


class Role(StrEnum):
    """Whose permissions are checked: a program's, or those of a person who uses this command line."""

    WORKER = "worker"
    PUBLISHER = "publisher"
    OPERATOR = "operator"


POLICIES: Final[Mapping[Role, str]] = {
    Role.WORKER: "update the stack worker, whose TaskRole allows it",
    Role.PUBLISHER: "attach PublisherPolicyArn of the stack data",
    Role.OPERATOR: "attach OperatorPolicyArn and RedrivePolicyArn of the stack data",
}


class Need(NamedTuple):
    """One action that a role needs: the client's method for it, and arguments with which it has no effect."""

    action: str
    variable: str
    """It names the resource."""
    method: str
    arguments: Callable[[str], dict[str, Any]]
    """Of the resource: a URL or a name."""

    @property
    def service(self) -> str:
        return self.action.partition(":")[0]


def needs(role: Role) -> Sequence[Need]:
    """What this role needs, besides the connections of the API (`endpoint`) and objects, which cannot be checked."""
    return _NEEDED[role]


def check(clients: Mapping[str, Any], role: Role, resources: Mapping[str, str]) -> Iterator[Finding]:
    """Checks the role's needs on the resources that there are: URLs and names, by variable.

    `clients` are those of the SDK, by service. Raises an error that is none of theirs.
    """
    for variable, value in resources.items():
        its = [need for need in needs(role) if need.variable == variable]
        allowed = []
        for need in its:
            finding = _try(clients[need.service], need, value, POLICIES[role])
            if finding is None:
                allowed.append(need.action)
                continue
            yield finding
            if finding.check == RESOURCE:
                break
        if allowed:
            yield ok(f"permissions ({variable})", ", ".join(allowed))


def _try(client: Any, need: Need, resource: str, policy: str) -> Finding | None:
    """None if it is allowed. Its check is RESOURCE if other calls for it would fail alike."""
    try:
        getattr(client, need.method)(**need.arguments(resource))
    except Exception as error:
        problem = explain(error)
        if problem is None:
            raise
        name = f"permission {need.action} ({need.variable})"
        match problem.cause:
            case Cause.DENIED:
                return failed(name, problem.what, f"allow {need.action} on what {need.variable} names: {policy}")
            case Cause.THROTTLED | Cause.UNAVAILABLE:
                return warning(name, problem.what, problem.remedy)
            case Cause.OTHER:
                return None
        return Finding.from_problem(RESOURCE, problem, subject=need.variable)
    return None


_QUEUE, _DEAD_LETTERS = "GATECAST_QUEUE_URL", "GATECAST_DEAD_LETTER_QUEUE_URL"
_RECEIPTS, _TABLE = "GATECAST_RECEIPTS_QUEUE_URL", "GATECAST_TABLE"
_RECEIVE: Final = {"MaxNumberOfMessages": 1, "VisibilityTimeout": 0, "WaitTimeSeconds": 0}
"""At most one message, which is visible again at once; its number of receives grows by one."""
_QUEUE_CALLS: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "ReceiveMessage": ("receive_message", _RECEIVE),
    "ChangeMessageVisibility": ("change_message_visibility", {"ReceiptHandle": _HANDLE, "VisibilityTimeout": 0}),
    "DeleteMessage": ("delete_message", {"ReceiptHandle": _HANDLE}),
    "SendMessage": ("send_message", {"MessageBody": ""}),  # SQS accepts none without a body
    "GetQueueAttributes": ("get_queue_attributes", {"AttributeNames": ["QueueArn"]}),
}


def _queue(variable: str, *actions: str) -> list[Need]:
    return [
        Need(f"sqs:{action}", variable, method, _with_url(arguments))
        for action, (method, arguments) in ((action, _QUEUE_CALLS[action]) for action in actions)
    ]


def _with_url(arguments: Mapping[str, Any]) -> Callable[[str], dict[str, Any]]:
    return lambda url: {"QueueUrl": url, **arguments}


def _table(action: str, method: str, **arguments: Any) -> Need:
    return Need(f"dynamodb:{action}", _TABLE, method, lambda name: {"TableName": name, **arguments})


def _batch(action: str, method: str, requests: Any) -> Need:
    return Need(f"dynamodb:{action}", _TABLE, method, lambda name: {"RequestItems": {name: requests}})


def _put(pk: str, sk: str) -> Need:
    return _table("PutItem", "put_item", Item=keys.key(pk, sk), ConditionExpression=_NEVER)


def _update(pk: str, sk: str) -> Need:
    return _table(
        "UpdateItem",
        "update_item",
        Key=keys.key(pk, sk),
        UpdateExpression="SET doctor = :one",
        ConditionExpression=_NEVER,
        ExpressionAttributeValues={":one": {"N": "1"}},
    )


_INSERTION: Final = (
    f"""INSERT INTO "{{}}" VALUE {{{{'pk': '{keys.progress_pk(_ROOM, "doctor")}', 'sk': '{keys.progress_sk("")}'}}}}"""
)
_READS: Final = (
    _table(
        "Query",
        "query",
        KeyConditionExpression="pk = :pk",
        ExpressionAttributeValues={":pk": {"S": keys.room_pk(_ROOM, 0)}},
        Limit=1,
    ),
    _batch("BatchGetItem", "batch_get_item", {"Keys": [keys.key(keys.settings_pk(_ROOM), keys.SETTINGS_SK)]}),
    _table("GetItem", "get_item", Key=keys.key(keys.stream_pk(_ROOM), keys.HEAD_SK)),
)
_INSERT: Final = Need(
    "dynamodb:PartiQLInsert",
    _TABLE,
    "execute_transaction",
    lambda name: {"TransactStatements": [{"Statement": _INSERTION.format(name)}] * 2},
)
"""The same item twice in one transaction, which DynamoDB rejects."""
_DELETES: Final = [{"DeleteRequest": {"Key": keys.key(keys.room_pk(_ROOM, 0), "doctor")}}]
_NEEDED: Final[Mapping[Role, Sequence[Need]]] = {
    Role.WORKER: (
        *_queue(_QUEUE, "ReceiveMessage", "ChangeMessageVisibility", "DeleteMessage", "SendMessage"),
        *_queue(_QUEUE, "GetQueueAttributes"),
        *_queue(_DEAD_LETTERS, "SendMessage", "GetQueueAttributes"),
        *_queue(_RECEIPTS, "SendMessage", "GetQueueAttributes"),
        *_READS,
        _INSERT,
        _update(keys.progress_pk(_ROOM, "doctor"), keys.progress_sk("")),
        _put(keys.stream_pk(_ROOM), keys.entry_sk(0)),
        _batch("BatchWriteItem", "batch_write_item", _DELETES),
    ),
    Role.PUBLISHER: _queue(_QUEUE, "SendMessage"),
    Role.OPERATOR: (
        *_queue(_QUEUE, "SendMessage"),
        *_queue(_DEAD_LETTERS, "ReceiveMessage", "ChangeMessageVisibility", "DeleteMessage"),
        *_READS,
        _update(keys.settings_pk(_ROOM), keys.SETTINGS_SK),
        _put(keys.user_pk(_ROOM), keys.NOT_BEFORE_SK),
    ),
}
