"""The data of one screen: each worker, their total, and the broadcasts in progress."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from gatecast.cli.top.figures import Figures, figures, suspects
from gatecast.cli.top.samples import Reading, Samples, combine, compare


class Broadcast(msgspec.Struct, frozen=True):
    """One broadcast in progress, as `GET /broadcasts` returns it. Fields that are not shown are omitted."""

    id: str
    part: str
    age_seconds: float
    delivered: int
    gone: int
    expired: int
    rejected: int
    undelivered: int
    in_flight: int
    waiting: int
    read_ahead: int
    all_read: bool

    @property
    def settled(self) -> int:
        return self.delivered + self.gone + self.expired + self.rejected + self.undelivered

    @property
    def share_settled(self) -> float | None:
        """None until all members are read, because their number is unknown before."""
        members = self.settled + self.in_flight + self.waiting + self.read_ahead
        return self.settled / members if self.all_read and members else None


class RoomCost(msgspec.Struct, frozen=True):
    """A room, and the units that its posts have been billed for in the last ten minutes."""

    room: str
    billed_units: int


class BroadcastsInProgress(msgspec.Struct, frozen=True):
    """The response of `GET /broadcasts`: the oldest broadcasts in progress, and the number of all.

    `dearest_rooms` is absent if the worker can be reached from other machines, or has spent nothing on rooms lately.
    """

    broadcasts: tuple[Broadcast, ...] = ()
    total: int = 0
    dearest_rooms: tuple[RoomCost, ...] = ()


@dataclass(frozen=True, slots=True)
class Scrape:
    """What a worker returned. `at` is in monotonic seconds. `reasons` are its problems by component, as far as known.

    `in_progress` is None if the worker did not return its broadcasts.
    """

    at: float
    samples: Samples
    reasons: Mapping[str, str]
    in_progress: BroadcastsInProgress | None


@dataclass(frozen=True, slots=True)
class Unreachable:
    """The worker did not respond, or the response is not a worker's."""

    reason: str


Poll = Scrape | Unreachable


class State(StrEnum):
    READY = "ready"
    DRAINING = "draining"
    NOT_READY = "NOT READY"
    UNREACHABLE = "UNREACHABLE"


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker. `problems` are reasons by component; `figures` are None if the worker is unreachable."""

    name: str
    state: State
    problems: Mapping[str, str]
    figures: Figures | None
    suspects: frozenset[str]


@dataclass(frozen=True, slots=True)
class Progress:
    """A broadcast in progress on a worker, and its deliveries per second since the last poll; None if unknown."""

    worker: str
    broadcast: Broadcast
    per_second: float | None


@dataclass(frozen=True, slots=True)
class View:
    """`broadcasts` are the oldest of `in_progress`, oldest first. `in_progress` and `total` are None if unknown.

    `dearest_rooms` are those of all workers, as far as these show them, the dearest first.
    """

    workers: tuple[Worker, ...]
    total: Figures | None
    suspects: frozenset[str]
    broadcasts: tuple[Progress, ...]
    in_progress: int | None
    dearest_rooms: tuple[RoomCost, ...] = ()

    @property
    def ready(self) -> int:
        return sum(worker.state is State.READY for worker in self.workers)


def view(before: Mapping[str, Poll], now: Mapping[str, Poll]) -> View:
    """Compute the view from two polls, each by worker. `before` is empty at first; rates need both."""
    workers: list[Worker] = []
    readings: list[Reading] = []
    broadcasts: list[Progress] = []
    totals: list[int] = []
    costs: Counter[str] = Counter()
    names = _short_names(now)
    for address, poll in now.items():
        name = names[address]
        if isinstance(poll, Unreachable):
            workers.append(Worker(name, State.UNREACHABLE, {"": poll.reason}, None, frozenset()))
            continue
        earlier = before.get(address)
        last = earlier if isinstance(earlier, Scrape) else None
        reading = compare(last.samples if last else None, poll.samples, poll.at - last.at if last else 0.0)
        readings.append(reading)
        its = figures(reading)
        problems = poll.reasons or dict.fromkeys(poll.samples.failing_components, "")
        workers.append(Worker(name, _state(reading, ready=poll.samples.ready), problems, its, suspects(its)))
        broadcasts += _progress(name, last, poll)
        if poll.in_progress is not None:
            totals.append(poll.in_progress.total)
            for each in poll.in_progress.dearest_rooms:
                costs[each.room] += each.billed_units
    return View(
        workers=tuple(workers),
        total=figures(combine(readings)) if readings else None,
        suspects=frozenset[str]().union(*(worker.suspects for worker in workers)),
        broadcasts=_oldest_first(broadcasts),
        in_progress=sum(totals) if totals else None,
        dearest_rooms=tuple(RoomCost(*each) for each in costs.most_common()),
    )


def _short_names(addresses: Iterable[str]) -> dict[str, str]:
    """Shorten each `host:port` to the part that distinguishes it: the host if all have one port, or the port."""
    split = {address: address.rpartition(":") for address in addresses}
    hosts, ports = ({parts[index] for parts in split.values()} for index in (0, 2))
    if len(split) == 1 or len(hosts) > 1 < len(ports):
        return {address: address for address in split}
    return {address: host if len(hosts) > 1 else f":{port}" for address, (host, _, port) in split.items()}


def _state(reading: Reading, *, ready: bool) -> State:
    if reading.gauge("gatecast_draining"):
        return State.DRAINING
    return State.READY if ready else State.NOT_READY


def _progress(worker: str, last: Scrape | None, now: Scrape) -> Iterable[Progress]:
    broadcasts = now.in_progress.broadcasts if now.in_progress else ()
    known = last.in_progress.broadcasts if last and last.in_progress else ()
    before = {(one.id, one.part): one.delivered for one in known}
    for one in broadcasts:
        delivered = before.get((one.id, one.part), one.delivered + 1)
        per_second = (one.delivered - delivered) / (now.at - last.at) if last and delivered <= one.delivered else None
        yield Progress(worker, one, per_second)


def _oldest_first(broadcasts: Sequence[Progress]) -> tuple[Progress, ...]:
    return tuple(sorted(broadcasts, key=lambda one: -one.broadcast.age_seconds))
