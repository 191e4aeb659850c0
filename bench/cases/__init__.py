"""The benchmarks, in the order of the report."""

from typing import Any

from bench.case import Case
from bench.cases.clients import Clients
from bench.cases.idle import Idle
from bench.cases.latency import Latency
from bench.cases.loop_iterations import LoopIterations
from bench.cases.memory import Memory
from bench.cases.observability import Observability
from bench.cases.paced import Paced
from bench.cases.reaping import Reaping
from bench.cases.room import Room
from bench.cases.small_rooms import SmallRooms

CASES: tuple[Case[Any], ...] = (
    Clients(),
    Room(),
    SmallRooms(),
    Latency(),
    Paced(),
    LoopIterations(),
    Memory(),
    Idle(),
    Observability(),
    Reaping(),
)
