"""Keep a pool's addresses up to date: resolve its name periodically. Failures do not end this."""

import asyncio
import random
import socket
from typing import Any, Final

from worker.transport.pool import Pool

_REFRESH_SECONDS: Final = 30.0
_RETRY_SECONDS: Final = 1.0


async def refresh_addresses(pool: Pool[Any]) -> None:
    """Run until cancelled. The addresses are shuffled, so that workers use them in different orders."""
    address = pool.address
    loop = asyncio.get_running_loop()
    while True:
        try:
            found = await loop.getaddrinfo(address.hostname, address.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            pool.unresolved(f"cannot resolve {address.hostname}: {error}")
            await asyncio.sleep(_RETRY_SECONDS)
            continue
        addresses = [(entry[0], entry[4]) for entry in found]
        random.shuffle(addresses)
        pool.resolved(addresses)
        await asyncio.sleep(_REFRESH_SECONDS)
