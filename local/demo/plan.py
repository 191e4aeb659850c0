"""The demo's plan: memberships, dropped clients and messages. Pure: equal seeds give equal plans."""

import random
from dataclasses import dataclass
from typing import Final, NamedTuple

ROOMS_PER_CLIENT: Final = 2
DROPPED_SHARE: Final = 10
WITHOUT_ECHO_SHARE: Final = 4


class Message(NamedTuple):
    """One broadcast that a client publishes. Without `echo` the publisher is excluded."""

    number: int
    room: str
    publisher: int
    echo: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """Clients are numbered from 0. `rooms` has each room's members; no room ever loses all of them."""

    rooms: dict[str, tuple[int, ...]]
    dropped: frozenset[int]
    messages: tuple[Message, ...]

    @property
    def clients(self) -> list[int]:
        return sorted({client for members in self.rooms.values() for client in members})

    @property
    def memberships(self) -> list[tuple[int, str]]:
        return [(client, room) for room, members in self.rooms.items() for client in members]

    def audience(self, message: Message) -> frozenset[int]:
        members = frozenset(self.rooms[message.room])
        return members if message.echo else members - {message.publisher}


def make_plan(*, clients: int, rooms: int, messages: int, rng: random.Random) -> Plan:
    """A tenth of the clients are dropped. The n-th largest room has about 1/n of the largest room's members."""
    names = [f"room-{number:0{len(str(rooms))}}" for number in range(1, rooms + 1)]
    members = _spread(clients, names, rng)
    dropped = frozenset(rng.sample(range(rooms, clients), max(1, clients // DROPPED_SHARE)))
    return Plan(members, dropped, tuple(_messages(members, dropped, messages, rng)))


def _spread(clients: int, names: list[str], rng: random.Random) -> dict[str, tuple[int, ...]]:
    """Assigns one client to each room, which is never dropped; clients join further rooms by their popularity."""
    popularity = [1 / rank for rank in range(1, len(names) + 1)]
    members: dict[str, list[int]] = {name: [] for name in names}
    for client in range(clients):
        chosen = set(names[client : client + 1])
        while len(chosen) < min(ROOMS_PER_CLIENT, len(names)):
            chosen.update(rng.choices(names, popularity))
        for name in chosen:
            members[name].append(client)
    return {name: tuple(of_room) for name, of_room in members.items()}


def _messages(
    members: dict[str, tuple[int, ...]], dropped: frozenset[int], messages: int, rng: random.Random
) -> list[Message]:
    """Messages to all rooms in turn, each from a member that is not dropped."""
    names: list[str] = []
    while len(names) < messages:
        names += rng.sample(list(members), len(members))
    return [
        Message(
            number=number,
            room=room,
            publisher=rng.choice([client for client in members[room] if client not in dropped]),
            echo=number % WITHOUT_ECHO_SHARE != 0,
        )
        for number, room in enumerate(names[:messages])
    ]
