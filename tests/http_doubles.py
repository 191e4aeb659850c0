"""What the HTTP handlers depend on, in memory: a queue, a bucket and revocations, besides those of `route_doubles`."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from gatecast import Broadcast, Publisher, decode
from routes import dependencies
from tests.route_doubles import Doubles


class Queue:
    """Of both kinds of calls. If `failure` is set, every call raises it."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.failure: Exception | None = None

    @property
    def broadcasts(self) -> list[Broadcast]:
        return [decode(each["MessageBody"]) for each in self.messages]

    def send_message(self, **message: Any) -> None:
        self._store(message)

    def send_message_batch(self, *, QueueUrl: str, Entries: list[dict[str, Any]]) -> dict[str, Any]:  # noqa: N803
        del QueueUrl
        for each in Entries:
            self._store(each)
        return {"Successful": [{"Id": each["Id"]} for each in Entries]}

    def _store(self, message: dict[str, Any]) -> None:
        if self.failure:
            raise self.failure
        self.messages.append(message)


class Bucket:
    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, str]] = {}

    def put_object(self, *, Bucket: str, Key: str, Body: bytes, ContentType: str) -> None:  # noqa: N803
        assert Bucket == "payloads"
        self.objects[Key] = (Body, ContentType)


@dataclass
class HttpDoubles:
    """`revoked` has the users and their `not_before`."""

    routes: Doubles = field(default_factory=Doubles)
    queue: Queue = field(default_factory=Queue)
    bucket: Bucket = field(default_factory=Bucket)
    revoked: dict[str, int] = field(default_factory=dict)

    def install(
        self, monkeypatch: pytest.MonkeyPatch, *, with_bucket: bool = True, queue_url: str = "https://queue"
    ) -> "HttpDoubles":
        self.routes.install(monkeypatch)
        stored: dict[str, Any] = {"s3": self.bucket, "bucket": "payloads"} if with_bucket else {}
        replaced = {
            "publisher": Publisher(self.queue, queue_url),
            "storing_publisher": Publisher(self.queue, queue_url, **stored),
            "payload_bucket": "payloads" if with_bucket else None,
            "revocations": self,
        }
        for name, double in replaced.items():
            monkeypatch.setattr(dependencies, name, lambda double=double: double)
        return self

    def revoke(self, user: str, *, not_before: int) -> None:
        self.revoked[user] = not_before
