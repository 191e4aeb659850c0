"""The benchmarks, in the order of the report."""

from typing import Any

from bench.case import Case
from bench.cases.clients import Clients
from bench.cases.latency import Latency
from bench.cases.memory import Memory
from bench.cases.paced import Paced
from bench.cases.quiet import Quiet
from bench.cases.reaping import Reaping
from bench.cases.room import Room
from bench.cases.small_rooms import SmallRooms
from bench.cases.turns import LoopTurns
from bench.cases.watching import Watching

CASES: tuple[Case[Any], ...] = (
    Clients(),
    Room(),
    SmallRooms(),
    Latency(),
    Paced(),
    LoopTurns(),
    Memory(),
    Quiet(),
    Watching(),
    Reaping(),
)
