"""Fixtures: the worker's own SQS and DynamoDB clients, connected to ministack."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from worker.aws.json_service import JsonService
from worker.observe.metrics import ServiceCalls
from worker.transport.signing import Credentials


@pytest.fixture
async def sqs_service(aws: dict[str, str]) -> AsyncIterator[JsonService]:
    async with _running_service(aws, "sqs", "AmazonSQS") as service:
        yield service


@pytest.fixture
async def dynamodb_service(aws: dict[str, str]) -> AsyncIterator[JsonService]:
    async with _running_service(aws, "dynamodb", "DynamoDB_20120810") as service:
        yield service


@asynccontextmanager
async def _running_service(aws: dict[str, str], name: str, prefix: str) -> AsyncIterator[JsonService]:
    service = JsonService(
        aws[f"AWS_ENDPOINT_URL_{name.upper()}"],
        region=aws["AWS_REGION"],
        service=name,
        prefix=prefix,
        json_version="1.0",
        connections=2,
        tls=None,
        calls=ServiceCalls(),
    )
    service.use(Credentials(aws["AWS_ACCESS_KEY_ID"], aws["AWS_SECRET_ACCESS_KEY"]))
    running = asyncio.create_task(service.run())
    try:
        yield service
    finally:
        running.cancel()
        await asyncio.wait({running})
