"""Publishing many messages in batches: what is sent together, what is retried, and what has failed in the end.

The messages of at most one batch are held: the *window*. Each round sends what the window holds, in one call. What
failed and may succeed stays there and is sent again with the next messages, after a wait. Always:

- A call has at most MAX_ENTRIES messages, and at most MAX_BATCH_BYTES in total, as SQS counts them.
- Every message that was read is, in the end, either accepted or named as failed.
- On a FIFO queue a call has at most one message of each group, the first one that the window holds: entries of a batch
  fail one by one, so two of a group in one call could be stored in the wrong order. Once a message has failed, later
  ones of its group are not sent either. So if the failed ones are published again in their order, each group keeps its
  own.
- Nothing waits for longer than the retry time without a message being accepted. After that, and after a final error of
  the queue, no further call is made, and all messages that are left are named as failed.

A call whose response was lost is repeated: a FIFO queue deduplicates, and behind a standard queue the worker does.
"""

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from gatecast.broadcast import Broadcast, InvalidBroadcast
from gatecast.publisher.publication import Prepared, Publication, id_of, room_of
from gatecast.publisher.queue import message_bytes
from gatecast.publisher.steps import END, Call, Next, Sleep, Steps

MAX_ENTRIES: Final = 10
MAX_BATCH_BYTES: Final = 1024 * 1024
"""Source of both: API reference of SendMessageBatch."""
_BASE_SECONDS: Final = 0.1
_MAX_SECONDS: Final = 5.0
_MAX_EXPONENT: Final = 16
_THROTTLED: Final = frozenset(
    {"PriorRequestNotComplete", "RequestLimitExceeded", "RequestTimeout", "TooManyRequestsException"}
)
_CONNECTION_ERRORS: Final = frozenset({
    "ConnectionError", "CredentialRetrievalError", "HTTPClientError", "OSError", "ResponseParserError", "TimeoutError",
})  # fmt: skip
"""By the names of their classes, since this package imports no SDK: botocore's, and Python's own."""


class Failed(NamedTuple):
    """A message that was not published: its position among all messages, from 0, and its id.

    `code` is the service's error code, the class of another error, "InvalidBroadcast", or "PrecedingFailed": on a FIFO
    queue, an earlier message of its room has failed. If a response was lost, the queue may have stored it all the same;
    to publish it again with the same id is safe.
    """

    position: int
    id: str
    code: str
    reason: str


class Published(NamedTuple):
    """The ids of the messages that the queue has stored, and the messages that failed; both in the messages' order."""

    accepted: list[str]
    failed: list[Failed]


class Problem(NamedTuple):
    """Why a call, or an entry of it, failed."""

    code: str
    reason: str
    retriable: bool

    @classmethod
    def from_error(cls, error: Exception) -> "Problem":
        """Of an SDK's client. Raises an error that is no client's: it is a mistake of the program."""
        response = getattr(error, "response", None)
        if not isinstance(response, Mapping):
            names = {each.__name__ for each in type(error).__mro__}
            if names.isdisjoint({"BotoCoreError", *_CONNECTION_ERRORS}):
                raise error
            return cls(type(error).__name__, str(error), not names.isdisjoint(_CONNECTION_ERRORS))
        code = str(response.get("Error", {}).get("Code", "Unknown"))
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        retriable = status >= 500 or status == 429 or "Throttl" in code or code in _THROTTLED  # noqa: PLR2004 - HTTP
        return cls(code, str(error), retriable)

    @classmethod
    def from_entry(cls, failed: Mapping[str, Any]) -> "Problem":
        """Of an item of `Failed` in a response."""
        return cls(failed.get("Code", "Unknown"), failed.get("Message", ""), not failed.get("SenderFault", False))


_PRECEDING_FAILED: Final = Problem("PrecedingFailed", "an earlier message of its room has failed", retriable=False)


@dataclass(slots=True)
class _Entry:
    position: int
    prepared: Prepared
    """Without `upload` once the object is stored."""
    size: int
    first_tried_at: float = math.inf
    problem: Problem | None = None

    @property
    def group(self) -> str:
        return str(self.prepared.message["MessageGroupId"])


class Batches:
    """One run of `publish_many`. `prepare` raises InvalidBroadcast; `jitter` is uniform in [0, 1)."""

    def __init__(
        self,
        queue_url: str,
        prepare: Callable[[Broadcast | Publication], Prepared],
        *,
        fifo: bool,
        retry_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._queue_url = queue_url
        self._prepare = prepare
        self._fifo = fifo
        self._retry_seconds = retry_seconds
        self._clock = clock
        self._jitter = jitter
        self._window: list[_Entry] = []
        self._ahead: _Entry | None = None
        """Read, but too large for the window as it is."""
        self._read = 0
        self._ended = False
        self._stopped: Problem | None = None
        self._accepted_at = -math.inf
        self._failures_in_a_row = 0
        self._accepted: list[tuple[int, str]] = []
        self._failed: list[Failed] = []
        self._failed_groups: dict[str, int] = {}
        """Of a FIFO queue, with the position of the first failed message. A standard queue keeps no order."""

    def run(self) -> Steps[Published]:
        while True:
            yield from self._fill()
            if not self._window:
                self._failed.sort()
                return Published([id_ for _, id_ in sorted(self._accepted)], self._failed)
            yield from self._send()
            if any(entry.problem for entry in self._window):
                delay_seconds = self._backoff_seconds()
                self._give_up(delay_seconds)
                if any(entry.problem for entry in self._window):
                    yield Sleep(delay_seconds)
            else:
                self._failures_in_a_row = 0

    def _fill(self) -> Steps[None]:
        """Reads messages until the window is full, or the next one does not fit, or there are no more."""
        while len(self._window) < MAX_ENTRIES:
            entry = self._ahead or (yield from self._next())
            self._ahead = None
            if entry is None:
                return
            if self._is_blocked(entry):
                self._fail(entry.position, entry.prepared.id, _PRECEDING_FAILED)
                continue
            if self._window and sum(each.size for each in self._window) + entry.size > MAX_BATCH_BYTES:
                self._ahead = entry
                return
            self._window.append(entry)

    def _next(self) -> Steps[_Entry | None]:
        """The next message that can be sent. Those that cannot are named as failed."""
        while not self._ended:
            message = yield Next()
            if message is END:
                self._ended = True
                return None
            position, self._read = self._read, self._read + 1
            if self._stopped is not None:
                self._fail(position, id_of(message), self._stopped)
                continue
            try:
                prepared = self._prepare(message)
            except InvalidBroadcast as error:
                self._fail(position, id_of(message), Problem("InvalidBroadcast", str(error), retriable=False))
                self._block(room_of(message), position)
                continue
            uploaded_bytes = 0 if prepared.upload is None else len(prepared.upload["Body"])
            return _Entry(position, prepared, message_bytes(prepared.message) + uploaded_bytes)
        return None

    def _send(self) -> Steps[None]:
        """One round: sends what the window holds. What needs an upload comes last, and delays nothing else."""
        entries = self._next_of_each_group() if self._fifo else list(self._window)
        yield from self._send_batch([entry for entry in entries if entry.prepared.upload is None])
        if self._stopped is None:
            waiting = [entry for entry in entries if entry.prepared.upload is not None]
            yield from self._upload(waiting)
            yield from self._send_batch([entry for entry in waiting if entry.prepared.upload is None])

    def _upload(self, entries: list[_Entry]) -> Steps[None]:
        """Stores their objects. After an error that may pass, it tries no more of them: they have failed alike."""
        for number, entry in enumerate(entries):
            started_at = self._clock()
            entry.first_tried_at = min(entry.first_tried_at, started_at)
            try:
                yield Call("s3", "put_object", entry.prepared.upload or {})
            except Exception as error:  # noqa: BLE001 - this package knows no SDK's classes
                entry.problem = Problem.from_error(error)
                if entry.problem.retriable:
                    for other in entries[number + 1 :]:
                        other.problem = entry.problem
                        other.first_tried_at = min(other.first_tried_at, started_at)
                    return
            else:
                entry.prepared = entry.prepared._replace(upload=None)

    def _send_batch(self, entries: list[_Entry]) -> Steps[None]:
        if not entries:
            return
        for entry in entries:
            entry.first_tried_at = min(entry.first_tried_at, self._clock())
        numbered = [{"Id": str(number), **entry.prepared.message} for number, entry in enumerate(entries)]
        try:
            response = yield Call("sqs", "send_message_batch", {"QueueUrl": self._queue_url, "Entries": numbered})
        except Exception as error:  # noqa: BLE001
            problem = Problem.from_error(error)
            for entry in entries:
                entry.problem = problem
            if not problem.retriable:
                self._stop(problem)
        else:
            self._settle(entries, response)

    def _next_of_each_group(self) -> list[_Entry]:
        first: dict[str, _Entry] = {}
        for entry in self._window:
            first.setdefault(entry.group, entry)
        return list(first.values())

    def _settle(self, entries: list[_Entry], response: Mapping[str, Any]) -> None:
        accepted = {each.get("Id") for each in response.get("Successful") or ()}
        problems = {each.get("Id"): Problem.from_entry(each) for each in response.get("Failed") or ()}
        for number, entry in enumerate(entries):
            if str(number) in accepted:
                self._accepted.append((entry.position, entry.prepared.id))
                self._accepted_at = self._clock()
                self._window.remove(entry)
            else:
                missing = Problem("NoResult", "the response has no result for it", retriable=True)
                entry.problem = problems.get(str(number), missing)

    def _give_up(self, delay_seconds: float) -> None:
        """Names as failed what no retry helps, and what has no time left for one after this delay."""
        retried_at = self._clock() + delay_seconds
        for entry in list(self._window):
            if self._is_blocked(entry):
                self._window.remove(entry)
                self._fail(entry.position, entry.prepared.id, _PRECEDING_FAILED)
                continue
            problem = entry.problem
            if problem is None or (problem.retriable and retried_at - entry.first_tried_at < self._retry_seconds):
                continue
            self._window.remove(entry)
            self._fail(entry.position, entry.prepared.id, problem)
            self._block(entry.group, entry.position)
            if problem.retriable and self._accepted_at < entry.first_tried_at:
                self._stop(problem)
                return

    def _stop(self, problem: Problem) -> None:
        """Makes no further call. Names what was read as failed; what is left is when it is read."""
        self._stopped = problem._replace(reason=f"not sent, after: {problem.reason}")
        for entry in (*self._window, *((self._ahead,) if self._ahead else ())):
            self._fail(entry.position, entry.prepared.id, entry.problem or self._stopped)
        self._window, self._ahead = [], None

    def _fail(self, position: int, message_id: str, problem: Problem) -> None:
        self._failed.append(Failed(position, message_id, problem.code, problem.reason))

    def _block(self, group: str | None, position: int) -> None:
        """Has all later messages of the group fail."""
        if self._fifo and group is not None:
            self._failed_groups[group] = min(position, self._failed_groups.get(group, position))

    def _is_blocked(self, entry: _Entry) -> bool:
        return entry.position > self._failed_groups.get(entry.group, entry.position)

    def _backoff_seconds(self) -> float:
        """Full jitter: between 0 and a limit that doubles with every round in a row in which something failed."""
        limit = min(_MAX_SECONDS, _BASE_SECONDS * (1 << min(self._failures_in_a_row, _MAX_EXPONENT)))
        self._failures_in_a_row += 1
        return self._jitter() * limit
