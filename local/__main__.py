"""`python -m local`: the whole system on this machine, for manual use until Ctrl-C."""

import asyncio
import errno
import logging
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from rich.console import Console

from local.backend import backend
from local.discovery import RunningStack, announced
from local.invitation import invitation
from local.ministack import SERVICES
from local.options import Options, parse
from local.processes import ProcessFailed, allow_many_files
from local.route_table import AUTHORIZER
from local.stack import Stack
from local.token import issuer_settings, read_secret

_ROUTE_LIMITS: Final = ("GATECAST_JOINS_PER_SECOND", "GATECAST_PUBLISHES_PER_SECOND")
"""Without limits by default, but the reader's own variables take effect."""


def main() -> int:
    options = parse()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    allow_many_files()
    console = Console(highlight=False, soft_wrap=True)
    try:
        return asyncio.run(_run(console, options))
    except OSError as error:
        console.print(_explained(error, options.port), style="red", markup=False)
        return 1
    except ProcessFailed as error:
        console.print(str(error), style="red", markup=False)
        return 1


async def _run(console: Console, options: Options) -> int:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with _stack(options) as stack:
        workers = (each.url for each in stack.workers)
        found = RunningStack.from_backend(stack.backend, stack.gateway.endpoint, workers, stack.http.url)
        with announced(found):
            console.print("\n[bold]Gatecast is running.[/bold] Press Ctrl-C to stop it.")
            text = invitation(found, logs=stack.directory, token=options.authorizer and not options.own_issuer)
            console.print(text, markup=False)
            await _until(stopped, stack)
            console.print("stopping …")
    return 0


@asynccontextmanager
async def _stack(options: Options) -> AsyncIterator[Stack]:
    services = {*SERVICES, "secretsmanager"} if options.authorizer else SERVICES
    settings = {name: os.environ[name] for name in _ROUTE_LIMITS if os.environ.get(name)}
    with ExitStack() as cleanup:
        directory = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="gatecast-"))
        base = cleanup.enter_context(
            backend(fifo=options.fifo, services=services, log=Path(directory, "ministack.log"))
        )
        if options.authorizer:
            settings["GATECAST_AUTHORIZER"] = "required"
        if options.authorizer and not options.own_issuer:
            settings.update(issuer_settings(base, read_secret()))
        async with Stack.running(
            on=base,
            workers=options.workers,
            port=options.port,
            route_settings=settings,
            authorizer=AUTHORIZER if options.authorizer else None,
            allowed_origins=options.allowed_origins,
            room_settings=options.room_settings,
        ) as stack:
            yield stack


async def _until(stopped: asyncio.Event, stack: Stack) -> None:
    """Returns when `stopped` is set. Raises ProcessFailed if a worker ends first."""
    stopping = asyncio.create_task(stopped.wait())
    endings = {asyncio.create_task(asyncio.to_thread(worker.process.wait)): worker for worker in stack.workers}
    await asyncio.wait([stopping, *endings], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    for ending, worker in endings.items():
        if ending.done():
            raise worker.process.failed("a worker ended")
        ending.cancel()


def _explained(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} is in use, perhaps by another `make local`: stop that program, "
            f"or take another port: make local PORT={port + 1} (PORT=0 takes a free one)"
        )
    return str(error)


if __name__ == "__main__":
    sys.exit(main())
