"""Keeping a pool's addresses up to date: the name is resolved again and again, and its failing is no reason to stop."""

import asyncio
import random
import socket
from typing import Any, Final

from worker.transport.pool import Pool

_AGAIN_SECONDS: Final = 30.0
_AFTER_FAILURE_SECONDS: Final = 1.0


async def refresh_addresses(pool: Pool[Any]) -> None:
    """Until cancelled. Each worker takes the addresses in an order of its own."""
    address = pool.address
    loop = asyncio.get_running_loop()
    while True:
        try:
            found = await loop.getaddrinfo(address.hostname, address.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            pool.unresolved(f"cannot resolve {address.hostname}: {error}")
            await asyncio.sleep(_AFTER_FAILURE_SECONDS)
            continue
        addresses = [(entry[0], entry[4]) for entry in found]
        random.shuffle(addresses)
        pool.resolved(addresses)
        await asyncio.sleep(_AGAIN_SECONDS)
