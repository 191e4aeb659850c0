"""One broadcast at a time on an idle system: from SQS's response to a receive until the first post has arrived."""

import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Final

import msgspec

from bench import peers
from bench.case import Case, Extent, Target, table
from bench.processes import BenchmarkFailed
from bench.programs import Worker, plain_worker, worker

WARM: Final = "the worker, room settings cached"
COLD: Final = "the worker, room settings not cached"
HISTORY: Final = "the worker, in a room with history"
PLAIN: Final = "plain aioboto3 worker: query"
CLAIMING: Final = "plain aioboto3 worker: claim, settings, query"
MEMBERS: Final = 5
_SQS_MS: Final = 10
_DYNAMODB_MS: Final = 5
_POST_MS: Final = 10
_BROADCASTS_PER_ROUND: Final = 40
_WARM_UP_BROADCASTS: Final = 4
_WARM_ROOM: Final = 0
_HISTORY_ROOM: Final = 1
_HISTORY_SECONDS: Final = 3_600
_MAX_WARM_MS: Final = 6.0
_MAX_COLD_MS: Final = 9.0
_LOOK_UP: Final = "BatchGetItem"
_APPEND: Final = "TransactWriteItems"
_COLUMNS: Final = {WARM: "settings cached", COLD: "settings not cached", HISTORY: "in a room with history"}


class Result(msgspec.Struct):
    milliseconds: dict[str, list[list[float]]]
    """By kind and round, one per broadcast."""
    operations: dict[str, dict[str, float]]
    """Calls to SQS and DynamoDB per broadcast, by kind."""


class Latency(Case[Result]):
    name = "latency"
    title = "From the queue to the first post, one broadcast at a time"
    result = Result

    def measure(self, extent: Extent) -> Result:
        timings = _Timings()
        broadcasts = extent.posts(_BROADCASTS_PER_ROUND)
        with (
            peers.aws(sqs_ms=_SQS_MS, dynamodb_ms=_DYNAMODB_MS) as aws,
            peers.connections((_POST_MS, _POST_MS)) as connections,
        ):
            for _ in range(extent.rounds):
                with worker(aws, connections, warm_up=None) as started, timings.round(*_COLUMNS):
                    for number in range(-_WARM_UP_BROADCASTS, broadcasts):
                        for kind in _COLUMNS:  # all see the same disturbances
                            timings.take(kind, started, keep=number >= 0)
                for kind in (PLAIN, CLAIMING):
                    with plain_worker(aws, connections, claims=kind == CLAIMING) as started, timings.round(kind):
                        for number in range(-_WARM_UP_BROADCASTS, broadcasts):
                            timings.take(kind, started, keep=number >= 0)
        return timings.result()

    def describe(self, result: Result) -> list[str]:
        rows = [
            [
                kind,
                *(f"{_percentile(rounds, percent):.1f} ms" for percent in (50, 90, 99)),
                f"{_ratio(rounds, result.milliseconds[WARM]):.1f}",
            ]
            for kind, rounds in result.milliseconds.items()
        ]
        operations = {kind: result.operations[kind] for kind in _COLUMNS if kind in result.operations}
        calls = [
            [operation, *(f"{counted.get(operation, 0):.2f}" for counted in operations.values())]
            for operation in sorted(set().union(*operations.values()))
        ]
        number = sum(map(len, result.milliseconds[WARM]))
        return [
            (
                f"A call to SQS takes {_SQS_MS} ms, one to DynamoDB {_DYNAMODB_MS} ms, a post {_POST_MS} ms. A room of "
                f"{MEMBERS} members, bodies of 256 B, {number} broadcasts of each kind, each sent some time after the "
                "previous one has ended. The latency is the time from SQS's response to a receive until the first post "
                "has arrived, both measured by the peers. The worker claims every broadcast and reads the settings of "
                "rooms that are not cached, in parallel with the first page of members. In a room with history, whose "
                "settings and latest offset are cached, it adds the message to the history after the claim, and reads "
                "members only after that: two calls more before the first post. The plain worker "
                "(`bench/plain_worker.py`) makes SDK calls one after the other: only the query, or the same three "
                "calls as the worker."
            ),
            table(["", "p50", "p90", "p99", "× the worker"], rows),
            (
                "**Calls to SQS and DynamoDB per broadcast**, one broadcast at a time; under load broadcasts share "
                "calls, as the rooms of five above show:"
            ),
            table(["operation", *(_COLUMNS[kind] for kind in operations)], calls),
        ]

    def targets(self, result: Result) -> list[Target]:
        where = "from SQS's response to the first post, p50"
        found = result.milliseconds
        return [
            Target(f"{where}, settings cached", _MAX_WARM_MS, _percentile(found[WARM], 50), form="{:.1f} ms"),
            Target(f"{where}, settings not cached", _MAX_COLD_MS, _percentile(found[COLD], 50), form="{:.1f} ms"),
        ]


class _Timings:
    """The measurements so far."""

    def __init__(self) -> None:
        self._milliseconds: dict[str, list[list[float]]] = {kind: [] for kind in (*_COLUMNS, PLAIN, CLAIMING)}
        self._operations: dict[str, Counter[str]] = {kind: Counter() for kind in self._milliseconds}
        self._rooms = itertools.count(_HISTORY_ROOM + 1)

    @contextmanager
    def round(self, *kinds: str) -> Iterator[None]:
        for kind in kinds:
            self._milliseconds[kind].append([])
        yield
        for kind in kinds:
            taken = self._milliseconds[kind][-1:]
            print(
                f"  {kind:<48} p50 {_percentile(taken, 50):6.2f} ms  p99 {_percentile(taken, 99):6.2f} ms", flush=True
            )

    def take(self, kind: str, started: Worker, *, keep: bool) -> None:
        room = next(self._rooms) if kind == COLD else _HISTORY_ROOM if kind == HISTORY else _WARM_ROOM
        history_seconds = _HISTORY_SECONDS if kind == HISTORY else 0
        workload = peers.Workload(1, rooms=1, members=MEMBERS, first_room=room, history_seconds=history_seconds)
        milliseconds = started.time_to_first_post(workload) * 1000
        if not keep:
            return
        operations = started.operations()
        looked_up = operations.get(_LOOK_UP, 0)
        if kind in {WARM, HISTORY} and looked_up:  # its cached settings had expired
            self.take(kind, started, keep=True)
            return
        if kind == COLD and not looked_up:
            raise BenchmarkFailed("the worker has not read the settings of a new room")
        if (kind == HISTORY) != (_APPEND in operations):
            raise BenchmarkFailed("only messages of a room with history are added to one")
        self._milliseconds[kind][-1].append(milliseconds)
        self._operations[kind].update(operations)

    def result(self) -> Result:
        broadcasts = {kind: sum(map(len, rounds)) for kind, rounds in self._milliseconds.items()}
        return Result(
            milliseconds={
                kind: [[round(each, 3) for each in taken] for taken in rounds]
                for kind, rounds in self._milliseconds.items()
            },
            operations={
                kind: {name: calls / broadcasts[kind] for name, calls in counted.items()}
                for kind, counted in self._operations.items()
            },
        )


def _percentile(rounds: list[list[float]], percent: int) -> float:
    """Over all rounds."""
    together = sorted(itertools.chain.from_iterable(rounds))
    return together[min(len(together) * percent // 100, len(together) - 1)]


def _ratio(rounds: list[list[float]], to: list[list[float]]) -> float:
    """Median of the rounds' own ratios of their medians."""
    return median(median(taken) / median(other) for taken, other in zip(rounds, to, strict=True))
