"""Tables of other people's, in which rooms have members: how they are created, filled and described to a worker.

Four shapes of keys. `{room}` and the like in `item` are the values of one member.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

AGE_MS: Final = 3_600_000
_BATCH: Final = 25


@dataclass(frozen=True)
class ForeignSchema:
    """`keys` are the table's, `index` those of its index, each as names with types: partition key, then sort key.

    `setting` has the fields of GATECAST_MEMBERS besides the table's name, `item` the attributes of a member.
    """

    keys: Mapping[str, str]
    setting: Mapping[str, Any]
    item: Mapping[str, Mapping[str, str]]
    index: Mapping[str, str] = field(default_factory=dict)
    local_index: bool = False
    projection: Mapping[str, Any] = field(default_factory=lambda: {"ProjectionType": "ALL"})

    def create(self, dynamodb: Any, name: str) -> None:
        indexes = {}
        if self.index:
            described = {
                "IndexName": self.setting["index"],
                "KeySchema": _key_schema(self.index),
                "Projection": dict(self.projection),
            }
            indexes = {"LocalSecondaryIndexes" if self.local_index else "GlobalSecondaryIndexes": [described]}
        dynamodb.create_table(
            TableName=name,
            KeySchema=_key_schema(self.keys),
            AttributeDefinitions=[
                {"AttributeName": attribute, "AttributeType": type_}
                for attribute, type_ in {**self.keys, **self.index}.items()
            ],
            BillingMode="PAY_PER_REQUEST",
            **indexes,
        )

    def members(self, name: str, **others: str) -> str:
        """GATECAST_MEMBERS for the table of that name."""
        return json.dumps({"table": name, **self.setting, **others})

    def items(
        self, room: str, ids: Sequence[str], *, joined_at_ms: int | None = None, **others: Mapping[str, str]
    ) -> Iterator[dict[str, dict[str, str]]]:
        """An item per member, who joined an hour ago unless it is said when."""
        since = int(time.time() * 1000) - AGE_MS if joined_at_ms is None else joined_at_ms
        for number, each in enumerate(ids):
            values = {
                "room": room,
                "id": each,
                "ms": str(since + number // 3),
                "s": str(since // 1000 + number // 3),
                "later": str(int(time.time()) + 3_600),
                "number": str(number),
            }
            yield {
                name: {type_: text.format(**values) for type_, text in value.items()}
                for name, value in {**self.item, **others}.items()
            }

    def fill(self, dynamodb: Any, name: str, room: str, ids: Sequence[str], **others: Any) -> None:
        requests = [{"PutRequest": {"Item": item}} for item in self.items(room, ids, **others)]
        for start in range(0, len(requests), _BATCH):
            batch: Any = requests[start : start + _BATCH]
            while batch:
                batch = dynamodb.batch_write_item(RequestItems={name: batch})["UnprocessedItems"].get(name, [])

    def ids(self, dynamodb: Any, name: str) -> set[str]:
        """The connection ids of all items that have one."""
        attribute = self.setting.get("connection_id", self.setting.get("sk"))
        prefix = self.setting.get("sk_prefix", "") if attribute == self.setting.get("sk") else ""
        pages = dynamodb.get_paginator("scan").paginate(TableName=name, ConsistentRead=True)
        texts = [item[attribute]["S"] for page in pages for item in page["Items"] if attribute in item]
        return {text.removeprefix(prefix) for text in texts if text.startswith(prefix)}


def _key_schema(keys: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"AttributeName": name, "KeyType": kind} for name, kind in zip(keys, ("HASH", "RANGE"), strict=False)]


BY_ROOM: Final = ForeignSchema(
    keys={"room": "S", "connectionId": "S"},
    setting={"pk": "room", "pk_value": "room#{room}", "sk": "connectionId", "joined_at_ms": "joinedAt"},
    item={"room": {"S": "room#{room}"}, "connectionId": {"S": "{id}"}, "joinedAt": {"N": "{ms}"}},
)
BY_CONNECTION: Final = ForeignSchema(
    keys={"connectionId": "S"},
    index={"room": "S"},
    setting={
        "index": "byRoom",
        "pk": "room",
        "pk_value": "{room}",
        "sk": "connectionId",
        "joined_at_ms": "joinedAt",
        "expires_at": "ttl",
    },
    item={
        "room": {"S": "{room}"},
        "connectionId": {"S": "{id}"},
        "joinedAt": {"N": "{s}"},
        "ttl": {"N": "{later}"},
    },
)
BY_TIME: Final = ForeignSchema(
    keys={"connectionId": "S", "joinedAt": "N"},
    index={"room": "S", "joinedAt": "N"},
    projection={"ProjectionType": "KEYS_ONLY"},
    setting={
        "index": "byTime",
        "pk": "room",
        "pk_value": "{room}",
        "sk": "joinedAt",
        "connection_id": "connectionId",
        "joined_at_ms": "joinedAt",
    },
    item={"room": {"S": "{room}"}, "connectionId": {"S": "{id}"}, "joinedAt": {"N": "{ms}"}},
)
SINGLE_TABLE: Final = ForeignSchema(
    keys={"PK": "S", "SK": "S"},
    setting={"pk": "PK", "pk_value": "ROOM#{room}", "sk": "SK", "sk_prefix": "CONNECTION#", "joined_at_ms": "at"},
    item={"PK": {"S": "ROOM#{room}"}, "SK": {"S": "CONNECTION#{id}"}, "at": {"N": "{ms}"}},
)
LOCAL_INDEX: Final = ForeignSchema(
    keys={"room": "S", "subscription": "S"},
    index={"room": "S", "joinedAt": "N"},
    local_index=True,
    setting={
        "index": "byTime",
        "pk": "room",
        "pk_value": "{room}",
        "connection_id": "connection-id",
        "joined_at_ms": "joinedAt",
    },
    item={
        "room": {"S": "{room}"},
        "subscription": {"S": "subscription-{number}"},
        "connection-id": {"S": "{id}"},
        "joinedAt": {"N": "{ms}"},
    },
)
