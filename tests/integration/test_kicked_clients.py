"""What clients see when their user is kicked and revoked: real clients, gateway, authorizer, routes, and a worker."""

import asyncio
import json
import time
from collections.abc import Iterator

import pytest
from websockets.exceptions import InvalidStatus

from gatecast import Publisher, table
from gatecast.kicks import kick_broadcast
from local.ministack import SERVICES, Ministack
from tests.guarded_stack import everything, guarded, joined


@pytest.fixture(scope="module")
def ministack() -> Iterator[Ministack]:
    with Ministack.start(services=(*SERVICES, "secretsmanager")) as running:
        yield running


async def test_a_kicked_user_is_disconnected_and_cannot_come_back_while_revoked(
    ministack: Ministack, unique_name: str
) -> None:
    # on a FIFO queue a departure is announced without delay
    async with guarded(ministack, unique_name, fifo=True) as stack:
        backend = stack.backend
        observer = await joined(stack, "gatecast.v2", "olga", seconds=3_600)
        old = await joined(stack, "gatecast.v1", "ann", seconds=3_600)
        new = await joined(stack, "gatecast.v2", "ann", seconds=3_600)
        with backend.client("dynamodb") as dynamodb, backend.client("sqs") as sqs:
            item = table.revocation_item("ann", not_before=int(time.time()) + 3_600)
            dynamodb.put_item(TableName=backend.table, Item=item)
            kick = kick_broadcast(user="ann", code="banned", retry=False)
            Publisher(sqs, backend.queues.url).publish(kick)

            received_by_old, received_by_new = await asyncio.gather(everything(old), everything(new))

            assert not any('"closed"' in text for text in received_by_old)
            assert json.loads(received_by_new[-1]) == {"type": "closed", "code": "banned", "retry": False}
            with pytest.raises(InvalidStatus) as rejected:
                await joined(stack, "gatecast.v2", "ann", seconds=3_600)
            assert rejected.value.response.status_code == 403
            departed: set[str] = set()
            while not departed:
                frame = json.loads(await asyncio.wait_for(observer.recv(), 60))
                departed |= set(frame.get("departed", ()))
            assert departed == {"ann"}

            dynamodb.put_item(TableName=backend.table, Item=table.revocation_item("ann", not_before=int(time.time())))
            again = await joined(stack, "gatecast.v2", "ann", seconds=3_600)
            for client in (observer, again):
                await client.close()
