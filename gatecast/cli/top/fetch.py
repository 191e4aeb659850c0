"""Polls workers over HTTP: `/metrics`, `/broadcasts` and, if a worker is not ready, `/readyz` for the reasons."""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

import aiohttp
import msgspec

from gatecast.cli.top.samples import NotAWorker, parse
from gatecast.cli.top.view import BroadcastsInProgress, Poll, Scrape, Unreachable

DEFAULT_PORT: Final = 9090
TIMEOUT_SECONDS: Final = 2.0
_OK: Final = 200
_FAILURES: Final = (aiohttp.ClientError, OSError, TimeoutError, UnicodeDecodeError)


def address(text: str) -> str:
    """Normalise `host`, `host:port` or a URL (with or without `/metrics`) to `http://host:port`. Raises ValueError."""
    url = urlsplit(text if "://" in text else f"//{text}", scheme="http")
    if url.scheme not in ("http", "https") or not url.hostname or url.path not in ("", "/", "/metrics"):
        raise ValueError(f"{text}: expected http://host:port or host:port")
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    return f"{url.scheme}://{host}:{url.port or DEFAULT_PORT}"


def session() -> aiohttp.ClientSession:
    """An HTTP client for `poll_all`. The caller closes it."""
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS))


async def poll_all(session: aiohttp.ClientSession, addresses: Iterable[str]) -> dict[str, Poll]:
    """Poll all workers at once; the results are by `host:port`. Each request times out after TIMEOUT_SECONDS."""
    named = {urlsplit(one).netloc: one for one in addresses}
    polls = await asyncio.gather(*(_poll(session, one) for one in named.values()))
    return dict(zip(named, polls, strict=True))


async def _poll(session: aiohttp.ClientSession, url: str) -> Poll:
    try:
        status, text = await _get(session, f"{url}/metrics")
        at = time.monotonic()
        if status != _OK:
            return Unreachable(f"/metrics returned {status}")
        samples = parse(text)
    except (*_FAILURES, NotAWorker) as error:
        return Unreachable(_reason(error))
    reasons = {} if samples.ready else await _reasons(session, url)
    return Scrape(at, samples, reasons, await _in_progress(session, url))


async def _reasons(session: aiohttp.ClientSession, url: str) -> dict[str, str]:
    """By component; empty if `/readyz` cannot be read, or the worker has become ready."""
    with contextlib.suppress(*_FAILURES, msgspec.MsgspecError):
        return msgspec.json.decode((await _get(session, f"{url}/readyz"))[1], type=dict[str, str])
    return {}


async def _in_progress(session: aiohttp.ClientSession, url: str) -> BroadcastsInProgress | None:
    """None if `/broadcasts` cannot be read."""
    with contextlib.suppress(*_FAILURES, msgspec.MsgspecError):
        return msgspec.json.decode((await _get(session, f"{url}/broadcasts"))[1], type=BroadcastsInProgress)
    return None


async def _get(session: aiohttp.ClientSession, url: str) -> tuple[int, str]:
    """Return status and body. Raises one of `_FAILURES`."""
    async with session.get(url, allow_redirects=False) as response:
        return response.status, await response.text()


def _reason(error: Exception) -> str:
    """Describe an error in one short line."""
    match error:
        case TimeoutError():
            return f"no response within {TIMEOUT_SECONDS:g} s"
        case aiohttp.ClientConnectorError(os_error=OSError(errno=int(number))) if number > 0:
            return os.strerror(number)
        case _:
            return str(error) or type(error).__name__
