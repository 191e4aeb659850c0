"""After a quiet spell: how long until five members are reached, where a NAT gateway has forgotten the connections?"""

from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Final

import msgspec

from bench import peers
from bench.case import Case, Extent, Target, table
from bench.programs import UNLIMITED, Load, ask_client, python

MEMBERS: Final = 5
_CONNECTIONS: Final = 256
_DELAYS_MS: Final = (5, 15)
_MOST_ROUNDS: Final = 3
_LONGEST_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class _Spell:
    """Time passes `times_as_fast` while it lasts."""

    forgets_after: float
    quiet: float
    silent: bool
    times_as_fast: float

    @property
    def title(self) -> str:
        answer = "answers nothing" if self.silent else "answers with a reset"
        return f"{self.quiet:.0f} s, forgets after {self.forgets_after:.0f} s, {answer}"


_SPELLS: Final = [
    _Spell(forgets_after, quiet, silent, times_as_fast)
    for forgets_after, quiet, times_as_fast in ((350, 600, 100), (30, 45, 20))
    for silent in (False, True)
]


class Reached(msgspec.Struct):
    seconds: float
    kept: int
    """Connections that were open when the spell began."""
    unanswered: int
    """Posts that failed."""
    retried: int
    """Requests that were sent once more because their connection had died."""


class Result(msgspec.Struct):
    reached: dict[str, list[Reached]]
    """By spell, in words; one a round."""


class Quiet(Case[Result]):
    name = "quiet"
    title = "After a quiet spell behind a NAT gateway"
    result = Result

    def measure(self, extent: Extent) -> Result:
        reached: dict[str, list[Reached]] = {spell.title: [] for spell in _SPELLS}
        with peers.connections(_DELAYS_MS) as peer:
            for _ in range(min(extent.rounds, _MOST_ROUNDS)):
                for spell in _SPELLS:
                    found = _measure(peer, spell)
                    reached[spell.title].append(found)
                    print(f"  {spell.title:<60} {found.seconds * 1000:8.1f} ms", flush=True)
        return Result(reached)

    def describe(self, result: Result) -> list[str]:
        rows = [
            [
                title,
                f"{median(each.kept for each in found):.0f}",
                f"{median(each.seconds for each in found) * 1000:,.1f}",
                f"{max(each.seconds for each in found) * 1000:,.1f}",
                f"{max(each.unanswered for each in found)}",
                f"{max(each.retried for each in found)}",
            ]
            for title, found in result.reached.items()
        ]
        return [
            (
                "The engine alone, over TLS, through a NAT gateway that is played (`bench/nat.py`), to a stand-in "
                f"whose responses take {_DELAYS_MS[0]} to {_DELAYS_MS[1]} ms. A burst opens up to {_CONNECTIONS} "
                f"connections; then nothing is sent for a while; then {MEMBERS} members are to be reached. The spell "
                "is played 100 or 20 times as fast, for the engine and for the gateway alike. On AWS the kernel's "
                "probes of idle connections would keep the gateway from forgetting them; here they come too late. "
                "Where it answers nothing, a request that has not been acknowledged for 3 s is sent again."
            ),
            table(
                ["spell", "connections before", "ms, median", "ms, longest", "failed posts", "sent again"],
                rows,
            ),
        ]

    def targets(self, result: Result) -> list[Target]:
        return [
            Target(
                f"seconds until {MEMBERS} members are reached ({title})",
                _LONGEST_SECONDS,
                max(each.seconds for each in found),
                form="{:.3f}",
            )
            for title, found in result.reached.items()
            if title in {spell.title for spell in _SPELLS if spell.quiet >= spell.forgets_after >= 350}
        ]


def _measure(peer: peers.Connections, spell: _Spell) -> Reached:
    load = Load(MEMBERS, 256, _CONNECTIONS, 5_000, UNLIMITED)
    with peers.behind_nat(peer, spell.forgets_after / spell.times_as_fast, silent=spell.silent) as nat:
        ask = partial(ask_client, python("bench.clients.after_quiet"), nat, load)
        return msgspec.json.decode(ask(str(spell.quiet), str(spell.times_as_fast)), type=Reached)
