"""What clients see when their tokens expire: real clients, the gateway, the authorizer, the routes, and a worker."""

import asyncio
import json
from collections.abc import Iterator

import pytest

from gatecast import Broadcast, Publisher
from local.backend import Backend
from local.ministack import SERVICES, Ministack
from tests.guarded_stack import everything, guarded, joined
from worker.pipeline.closer import CLOCK_DIFFERENCE_SECONDS

LIFETIME_SECONDS = 6


@pytest.fixture(scope="module")
def ministack() -> Iterator[Ministack]:
    with Ministack.start(services=(*SERVICES, "secretsmanager")) as running:
        yield running


def publish(backend: Backend, name: str) -> None:
    with backend.client("sqs") as sqs:
        Publisher(sqs, backend.queues.url).publish(Broadcast(id=name, room="lobby", data=name))


async def test_clients_are_disconnected_when_their_token_has_expired_and_others_learn_of_it(
    ministack: Ministack, unique_name: str
) -> None:
    async with guarded(ministack, unique_name) as stack:
        observer = await joined(stack, "gatecast.v2", "olga", seconds=3_600)
        old = await joined(stack, "gatecast.v1", "ann", seconds=LIFETIME_SECONDS)
        new = await joined(stack, "gatecast.v2", "bob", seconds=LIFETIME_SECONDS)
        await asyncio.sleep(LIFETIME_SECONDS + CLOCK_DIFFERENCE_SECONDS + 1)

        publish(stack.backend, "late")

        received_by_old, received_by_new = await asyncio.gather(everything(old), everything(new))
        assert "late" not in received_by_old
        assert json.loads(received_by_new[-1]) == {"type": "closed", "code": "token_expired", "retry": True}
        assert not any('"late"' in text for text in received_by_new)

        again = await joined(stack, "gatecast.v2", "bob", seconds=3_600)
        departed: set[str] = set()
        joined_users: set[str] = set()
        messages: list[str] = []
        while "ann" not in departed:
            frame = json.loads(await asyncio.wait_for(observer.recv(), 60))
            departed |= set(frame.get("departed", ()))
            joined_users |= set(frame.get("joined", ()))
            messages += [each["data"] for each in frame.get("messages", ())]
        assert departed == {"ann"}, "bob has come back before the worker looked"
        assert {"ann", "bob"} <= joined_users
        assert messages == ["late"]
        for client in (observer, again):
            await client.close()
