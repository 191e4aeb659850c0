"""Plans of every size can be executed by the demo."""

import random

from hypothesis import given
from hypothesis import strategies as st

from local.demo.plan import ROOMS_PER_CLIENT, make_plan


@given(st.integers(10, 300), st.data(), st.integers(1, 50), st.integers())
def test_every_plan_can_be_carried_out(clients: int, data: st.DataObject, messages: int, seed: int) -> None:
    rooms = data.draw(st.integers(1, clients // 2))
    plan = make_plan(clients=clients, rooms=rooms, messages=messages, rng=random.Random(seed))
    assert plan.clients == list(range(clients))
    assert len(plan.rooms) == rooms
    assert len(plan.memberships) == clients * min(ROOMS_PER_CLIENT, rooms) == len(set(plan.memberships))
    assert len(plan.dropped) == clients // 10
    assert all(set(members) - plan.dropped for members in plan.rooms.values())
    assert [message.number for message in plan.messages] == list(range(messages))
    for message in plan.messages:
        assert message.publisher in set(plan.rooms[message.room]) - plan.dropped
        assert (message.publisher in plan.audience(message)) == message.echo
    assert plan == make_plan(clients=clients, rooms=rooms, messages=messages, rng=random.Random(seed))


def test_rooms_are_of_uneven_size() -> None:
    plan = make_plan(clients=1_000, rooms=20, messages=1, rng=random.Random(1))
    sizes = [len(members) for members in plan.rooms.values()]
    assert sizes[0] > 5 * sizes[-1]
