"""After an idle period: how long until five members are reached if a NAT gateway has dropped the connections."""

from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Final

import msgspec

from bench import peers
from bench.case import Case, Extent, Target, table
from bench.programs import UNLIMITED, Load, python, run_reporting_client

MEMBERS: Final = 5
_CONNECTIONS: Final = 256
_DELAYS_MS: Final = (5, 15)
_MAX_ROUNDS: Final = 3
_MAX_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class _Scenario:
    """An idle period behind a NAT gateway, in seconds; time passes `speedup` times as fast."""

    nat_timeout: float
    idle: float
    silent: bool
    speedup: float

    @property
    def title(self) -> str:
        behaviour = "packets dropped" if self.silent else "reset"
        return f"{self.idle:.0f} s idle, NAT timeout {self.nat_timeout:.0f} s, {behaviour}"


_SCENARIOS: Final = [
    _Scenario(nat_timeout, idle, silent, speedup)
    for nat_timeout, idle, speedup in ((350, 600, 100), (30, 45, 20))
    for silent in (False, True)
]


class Reached(msgspec.Struct):
    seconds: float
    kept: int
    """Connections that were open when the idle period began."""
    failed: int
    """Posts that failed."""
    retried: int
    """Requests that were retried because their connection had died."""


class Result(msgspec.Struct):
    reached: dict[str, list[Reached]]
    """By the scenario's title, one per round."""


class Idle(Case[Result]):
    name = "idle"
    title = "After an idle period behind a NAT gateway"
    result = Result

    def measure(self, extent: Extent) -> Result:
        reached: dict[str, list[Reached]] = {scenario.title: [] for scenario in _SCENARIOS}
        with peers.connections(_DELAYS_MS) as peer:
            for _ in range(min(extent.rounds, _MAX_ROUNDS)):
                for scenario in _SCENARIOS:
                    found = _measure(peer, scenario)
                    reached[scenario.title].append(found)
                    print(f"  {scenario.title:<60} {found.seconds * 1000:8.1f} ms", flush=True)
        return Result(reached)

    def describe(self, result: Result) -> list[str]:
        rows = [
            [
                title,
                f"{median(each.kept for each in found):.0f}",
                f"{median(each.seconds for each in found) * 1000:,.1f}",
                f"{max(each.seconds for each in found) * 1000:,.1f}",
                f"{max(each.failed for each in found)}",
                f"{max(each.retried for each in found)}",
            ]
            for title, found in result.reached.items()
        ]
        return [
            (
                "The engine alone, over TLS, through a simulated NAT gateway (`bench/nat.py`), to a mock server whose "
                f"responses take {_DELAYS_MS[0]} to {_DELAYS_MS[1]} ms. A burst opens up to {_CONNECTIONS} "
                f"connections; then nothing is sent for a while; then {MEMBERS} members must be reached. The idle "
                "period is accelerated 100 or 20 times, for the engine and the gateway alike. On AWS the kernel's "
                "keep-alive probes would prevent the gateway from dropping the connections; here they come too late. "
                "Where the gateway drops packets silently, a request not acknowledged for 3 s is retried."
            ),
            table(
                ["scenario", "connections before", "ms, median", "ms, maximum", "failed posts", "retried"],
                rows,
            ),
        ]

    def targets(self, result: Result) -> list[Target]:
        return [
            Target(
                f"seconds until {MEMBERS} members are reached ({title})",
                _MAX_SECONDS,
                max(each.seconds for each in found),
                form="{:.3f}",
            )
            for title, found in result.reached.items()
            if title in {scenario.title for scenario in _SCENARIOS if scenario.idle >= scenario.nat_timeout >= 350}
        ]


def _measure(peer: peers.Connections, scenario: _Scenario) -> Reached:
    load = Load(MEMBERS, 256, _CONNECTIONS, 5_000, UNLIMITED)
    with peers.behind_nat(peer, scenario.nat_timeout / scenario.speedup, silent=scenario.silent) as nat:
        run = partial(run_reporting_client, python("bench.clients.after_idle"), nat, load)
        return msgspec.json.decode(run(str(scenario.idle), str(scenario.speedup)), type=Reached)
