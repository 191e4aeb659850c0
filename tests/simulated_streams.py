"""Streams of broadcasts in virtual time: which member received what and when, and which messages it missed."""

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from gatecast import Broadcast, decode
from tests.simulation import World

HONEST = tuple(f"honest{number}" for number in range(20))
CHAT = tuple(f"chat{number}" for number in range(20))


def stuck_ids(count: int) -> tuple[str, ...]:
    return tuple(f"stuck{number:04d}" for number in range(count))


def is_stuck(connection_id: str) -> bool:
    return connection_id.startswith("stuck")


@dataclass
class Streams:
    """Publishes broadcasts at a rate. The payload of each is its id."""

    world: World
    published_at: dict[str, float] = field(default_factory=dict)

    def publish(self, room: str, number: int) -> None:
        name = f"{room}-{number}"
        self.published_at[name] = self.world.now()
        self.world.publish(Broadcast(id=name, room=room, data=name))

    async def publish_for(self, room: str, *, per_second: float, seconds: float) -> None:
        until, number = self.world.now() + seconds, 0
        while self.world.now() < until:
            self.publish(room, number)
            number += 1
            await asyncio.sleep(1 / per_second)

    def names(self, room: str) -> set[str]:
        return {name for name in self.published_at if name.startswith(f"{room}-")}

    def latencies(self, members: Iterable[str]) -> list[float]:
        return sorted(
            at - self.published_at[name] for member in members for at, name in self.world.received.get(member, ())
        )

    def all_received(self, room: str, members: Iterable[str]) -> bool:
        expected = sorted(self.names(room))
        return all(sorted(self.received(member)) == expected for member in members)

    def received(self, member: str) -> list[str]:
        return [name for _, name in self.world.received.get(member, ())]

    def missed(self) -> dict[str, list[str]]:
        """The ids of the broadcasts that each connection missed, according to the dead letters."""
        missed: dict[str, list[str]] = {}
        for letter in self.world.dead_letters:
            broadcast = decode(letter.body)
            for connection_id in broadcast.connections or ():
                missed.setdefault(connection_id, []).append(broadcast.id)
        return missed


def world_with(
    rooms: dict[str, Sequence[str]], respond: Callable[[str, int], int | None], *, fifo: bool = False
) -> World:
    world = World({}, respond=respond, rng=random.Random(1), fifo=fifo)
    for room, members in rooms.items():
        world.add_members(room, members)
    return world


def percentile(values: Sequence[float], share: float) -> float:
    return values[int(len(values) * share)]
