"""Calls to dependencies that must succeed in the end: wait, try again, say so, and never give up or run hot."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec
from aiohttp import ClientError as HttpError
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from worker.health import Health, Part
from worker.ports import NoAnswer, ServiceError
from worker.retry import backoff_seconds

R = TypeVar("R")

DEPENDENCY_ERRORS: Final = (
    ServiceError,
    ClientError,
    BotoCoreError,
    ResponseParserError,
    msgspec.MsgspecError,
    UnicodeDecodeError,  # what msgspec raises for JSON that is not UTF-8
    HttpError,
    OSError,
    asyncio.TimeoutError,
)
"""What a call may end with when SQS, DynamoDB, the network or the credentials are at fault."""


def describe(error: BaseException) -> str:
    """The error's code, our own few words, or its class; no others' messages, which may hold what nobody should log."""
    if isinstance(error, ClientError):
        return str(error.response.get("Error", {}).get("Code", "ClientError"))
    if isinstance(error, ServiceError):
        return error.code
    if isinstance(error, NoAnswer):
        return str(error)
    return type(error).__name__


async def persevere(part: Part, health: Health, call: Callable[[], Awaitable[R]]) -> R:
    """What `call` returns once it succeeds. Other errors than DEPENDENCY_ERRORS come through; cancelling ends it."""
    tries = 0
    while True:
        try:
            result = await call()
        except DEPENDENCY_ERRORS as error:
            health.failed(part, describe(error))
            tries += 1
            await asyncio.sleep(backoff_seconds(tries, 0.5 + random.random() / 2))
        else:
            health.ok(part)
            return result
