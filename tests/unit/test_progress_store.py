"""How the progress store reads damaged items and malformed responses. A scripted service responds."""

import asyncio
import json
from typing import Any, cast

import pytest

from gatecast import Broadcast
from worker.aws.errors import CONDITION_FAILED, ServiceError
from worker.aws.json_service import JsonService
from worker.aws.progress import Progress
from worker.decisions.checkpoint import Checkpoint
from worker.decisions.claims import Claimant
from worker.ports import Claim, DamagedProgress, DependencyError

BROADCAST = Broadcast(id="one", room="room", data="x")
REDELIVERED = Claimant("m", 2, "m/2", 0)


class Service:
    """Returns the scripted responses in turn; exceptions are raised."""

    def __init__(self, *responses: bytes | Exception) -> None:
        self.bodies: list[dict[str, Any]] = []
        self._responses = list(responses)

    async def call(self, operation: str, body: bytes) -> bytes:
        assert operation
        self.bodies.append(json.loads(body))
        response = self._responses.pop(0)
        if isinstance(response, Exception):
            raise response
        return response


def store(*responses: bytes | Exception) -> Progress:
    return Progress(cast(JsonService, Service(*responses)), "table")


GARBLED = [b"", b"{", b'{"Attributes": {"message_id": {"S": "\xff"}}}', b'{"Attributes": {"message_id": {"S": ', b"[]"]


@pytest.mark.parametrize("garbled", GARBLED)
async def test_a_garbled_response_is_a_dependency_error_and_no_damaged_item(garbled: bytes) -> None:
    for response in (garbled, ServiceError(CONDITION_FAILED, garbled.replace(b"Attributes", b"Item"))):
        with pytest.raises(DependencyError) as raised:
            await store(response).claim(BROADCAST, REDELIVERED)
        assert not isinstance(raised.value, DamagedProgress)


@pytest.mark.parametrize("attributes", [b"7", b"[]", b'{"message_id": "m"}', b'{"cursor": {"S": "c"}, "pending": {}}'])
async def test_an_item_that_no_worker_writes_is_damaged(attributes: bytes) -> None:
    for response in (
        b'{"Attributes": ' + attributes + b"}",
        ServiceError(CONDITION_FAILED, b'{"Item": ' + attributes + b"}"),
    ):
        with pytest.raises(DamagedProgress, match="broadcast#room one"):
            await store(response).claim(BROADCAST, REDELIVERED)


async def test_unprocessed_claims_are_returned() -> None:
    claims = []
    for number in range(2):
        claim = await store(b"{}").claim(Broadcast(id=f"b{number}", room="room", data="x"), REDELIVERED)
        assert isinstance(claim, Claim)
        claims.append(claim)
    unknown = {"PutRequest": {"Item": {"pk": {"S": "broadcast#room b9"}, "sk": {"S": "part#"}}}}
    unprocessed: dict[str, Any] = {"PutRequest": {"Item": {**claims[1].key, "completed_at": {"N": "1"}}}}
    responses = [
        json.dumps({"UnprocessedItems": {"table": requests}}).encode()
        for requests in ([], [unprocessed], [unknown, unprocessed, {"DeleteRequest": {}}])
    ]
    assert await store(responses[0]).complete(claims) == []
    assert await store(responses[1]).complete(claims) == [claims[1]]
    assert await store(responses[2]).complete(claims) == [claims[1]]


async def test_a_checkpoint_without_v2_connections_costs_no_byte_more() -> None:
    service = Service(*[b"{}"] * 3)
    progress = Progress(cast(JsonService, service), "table")
    claim = await progress.claim(BROADCAST, REDELIVERED)
    assert isinstance(claim, Claim)
    for v2 in ((), ("c1=",)):
        assert await progress.write_checkpoint(claim, Checkpoint("c5=", (("c1=", 7),), v2), made_progress=False)
    plain, with_v2 = (body["UpdateExpression"] for body in service.bodies[1:])
    assert plain == "SET #cursor = :cursor, pending = :pending, renewed_at = :now"
    assert with_v2 == f"{plain}, pending_v2 = :v2"
    assert sorted(service.bodies[1]["ExpressionAttributeValues"]) == [":claimed_by", ":cursor", ":now", ":pending"]


async def test_simultaneous_claims_share_a_call() -> None:
    responses = json.dumps({"Responses": [{}] * 3}).encode()
    progress = store(responses)
    broadcasts = [Broadcast(id=f"b{number}", room="room", data="x") for number in range(3)]
    claims = await asyncio.gather(*(progress.claim(each, Claimant("m", 1, "m/1", 0)) for each in broadcasts))
    assert all(isinstance(claim, Claim) for claim in claims)
