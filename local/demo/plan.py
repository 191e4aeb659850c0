"""Who is in which room, who vanishes, who publishes what. Pure: a seed gives the same plan every time."""

import random
from dataclasses import dataclass
from typing import Final, NamedTuple

ROOMS_A_CLIENT: Final = 2
VANISHING_SHARE: Final = 10
WITHOUT_ECHO_SHARE: Final = 4


class Message(NamedTuple):
    """One broadcast that a client makes. `echo` false leaves the publisher out."""

    number: int
    room: str
    publisher: int
    echo: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """Clients are numbers from 0. `rooms` has the members of each; no room ever loses all of them."""

    rooms: dict[str, tuple[int, ...]]
    vanishing: frozenset[int]
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
    """A tenth of the clients vanishes. The n-th largest room has about 1/n of the largest one's members."""
    names = [f"room-{number:0{len(str(rooms))}}" for number in range(1, rooms + 1)]
    members = _spread(clients, names, rng)
    vanishing = frozenset(rng.sample(range(rooms, clients), max(1, clients // VANISHING_SHARE)))
    return Plan(members, vanishing, tuple(_messages(members, vanishing, messages, rng)))


def _spread(clients: int, names: list[str], rng: random.Random) -> dict[str, tuple[int, ...]]:
    """Each room is given one client, who never vanishes; what else they join they choose by its popularity."""
    popularity = [1 / rank for rank in range(1, len(names) + 1)]
    members: dict[str, list[int]] = {name: [] for name in names}
    for client in range(clients):
        chosen = set(names[client : client + 1])
        while len(chosen) < min(ROOMS_A_CLIENT, len(names)):
            chosen.update(rng.choices(names, popularity))
        for name in chosen:
            members[name].append(client)
    return {name: tuple(of_room) for name, of_room in members.items()}


def _messages(
    members: dict[str, tuple[int, ...]], vanishing: frozenset[int], messages: int, rng: random.Random
) -> list[Message]:
    """Every room has its turn; only clients that stay publish."""
    names: list[str] = []
    while len(names) < messages:
        names += rng.sample(list(members), len(members))
    return [
        Message(
            number=number,
            room=room,
            publisher=rng.choice([client for client in members[room] if client not in vanishing]),
            echo=number % WITHOUT_ECHO_SHARE != 0,
        )
        for number, room in enumerate(names[:messages])
    ]
