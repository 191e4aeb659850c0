"""What the probes talk to: stages of a WebSocket API, the credentials for `@connections`, and the function's events."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple

from deploy.verify.masking import Masker
from deploy.verify.wire import Keys, Management

LONG_POLL_SECONDS: Final = 1


class Stage(NamedTuple):
    """The addresses of one stage: `url` for clients (`wss://…`), `endpoint` for `@connections` (`https://…`)."""

    url: str
    endpoint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """How long the probes wait, in seconds. The defaults are those for AWS.

    `idle` is after how long a connection without messages is expected to be closed, `keep_alive` how long idle HTTP
    connections are watched, `settle` how long to wait for a message that may never come, `hold` how long a `$connect`
    is kept from returning.
    """

    idle_seconds: float = 600.0
    keep_alive_seconds: float = 600.0
    settle_seconds: float = 10.0
    hold_seconds: float = 5.0


class Events:
    """Events that the function has sent to its queue, received when they are needed."""

    def __init__(self, sqs: Any, queue_url: str) -> None:
        self._sqs = sqs
        self._queue_url = queue_url
        self._received: list[dict[str, Any]] = []
        self._receiving = asyncio.Lock()

    async def first(
        self, event: str, is_wanted: Callable[[dict[str, Any]], bool], *, within_seconds: float
    ) -> dict[str, Any] | None:
        """The first event of that kind for which `is_wanted` holds; None if there is none in that time."""
        deadline = time.monotonic() + within_seconds
        while True:
            for each in self._received:
                if each["event"] == event and is_wanted(each):
                    return each
            if time.monotonic() > deadline:
                return None
            async with self._receiving:
                self._received += await asyncio.to_thread(self._receive)

    def _receive(self) -> list[dict[str, Any]]:
        response = self._sqs.receive_message(
            QueueUrl=self._queue_url, MaxNumberOfMessages=10, WaitTimeSeconds=LONG_POLL_SECONDS
        )
        messages = response.get("Messages", [])
        for message in messages:
            self._sqs.delete_message(QueueUrl=self._queue_url, ReceiptHandle=message["ReceiptHandle"])
        return [json.loads(message["Body"]) for message in messages]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A deployed probe.

    `authorized` is the stage of the API with an authorizer, `limited` the stages with throttles, by what is throttled.
    `not_asked` are the questions that cannot be asked here, by name, with the reason.
    """

    main: Stage
    authorized: Stage
    events: Events
    keys: Callable[[], Keys]
    region: str
    now: Callable[[], datetime]
    limited: Mapping[str, Stage] = field(default_factory=dict)
    durations: Durations = field(default_factory=Durations)
    not_asked: Mapping[str, str] = field(default_factory=dict)
    masker: Masker = field(default_factory=Masker)

    def management(self, stage: Stage | None = None) -> Management:
        """`@connections` of a stage; by default, of the main one."""
        endpoint = (stage or self.main).endpoint
        return Management(endpoint, keys=self.keys, region=self.region, now=self.now)
