"""`python -m local.demo`: exit code 0 if no delivery is missing, 1 if one is or the demo failed, 2 on invalid settings.

CLIENTS, ROOMS and MESSAGES set its size; KEEP=1 leaves everything running afterwards, until Ctrl-C.
`python -m local.demo http://127.0.0.1:4510/local` starts nothing: its clients connect to the gateway at that address,
for one demo at a time. The environment names that gateway's table and queue, as for the routes.
"""

import argparse
import asyncio
import os
import random
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

import uvloop
from rich.console import Console

from local.demo.clients import DemoFailed, open_clients
from local.demo.plan import make_plan
from local.demo.report import summary
from local.demo.scenario import Result, Scenario
from local.demo.screen import Screen
from local.demo.settings import ConfigurationError, Settings
from local.demo.system import EmbeddedSystem, System, attached, running
from local.discovery import RunningStack, announced
from local.invitation import invitation
from local.processes import ProcessFailed

SEED: Final = 1
SPARE_FILES: Final = 1_000
"""Open files that a process of the demo needs in addition to one per client."""
INTERRUPTED: Final = 130


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m local.demo", description=__doc__)
    parser.add_argument(
        "endpoint", nargs="?", help="a gateway that is already running, for example http://127.0.0.1:4510/local"
    )
    endpoint = parser.parse_args().endpoint
    console = Console(highlight=False)
    try:
        settings = Settings.from_environ(os.environ)
        _raise_file_limit(settings.clients + SPARE_FILES)
        with ExitStack() as cleanup:
            system = cleanup.enter_context(attached(endpoint)) if endpoint else _started(cleanup, console)
            return uvloop.run(_demo(settings, system, console))
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 2
    except (FileNotFoundError, ProcessFailed) as error:
        print(error, file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        return INTERRUPTED


def _started(cleanup: ExitStack, console: Console) -> System:
    with console.status("starting ministack, the gateway and a worker"):
        return cleanup.enter_context(running())


async def _demo(settings: Settings, system: System, console: Console) -> int:
    """Runs the scenario and monitors the processes. Prints the errors that end it early."""
    task = asyncio.current_task()
    assert task  # noqa: S101 - a coroutine runs in one
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    result: Result | None = None
    try:
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(system.watch())
            result = await _run(settings, system, console)
            watching.cancel()
    except* (DemoFailed, ProcessFailed) as failures:
        print(*_leaves(failures), sep="\n", file=sys.stderr)
        result = None
    return 0 if result and result.passed else 1


async def _run(settings: Settings, system: System, console: Console) -> Result:
    plan = make_plan(
        clients=settings.clients, rooms=settings.rooms, messages=settings.messages, rng=random.Random(SEED)
    )
    with Screen(console) as screen:
        scenario = Scenario(plan, system, screen)
        clients_open = open_clients(
            system.gateway.url,
            on_broadcast=scenario.on_broadcast,
            on_reference=scenario.on_reference,
            on_end=scenario.on_end,
        )
        async with clients_open as clients:
            result = await scenario.run(clients)
            screen.stop()
            console.print(summary(result))
            if settings.keep and isinstance(system, EmbeddedSystem):
                await _keep(system, console)
    return result


async def _keep(system: EmbeddedSystem, console: Console) -> None:
    """Leaves everything running until Ctrl-C."""
    stack = RunningStack.from_backend(system.backend, system.gateway.endpoint, [system.worker.url])
    with announced(stack):
        console.print("\n[bold]Everything keeps running.[/bold] Press Ctrl-C to stop it.")
        console.print(invitation(stack, logs=system.directory), markup=False, soft_wrap=True)
        await _interrupted()
        console.print("stopping")


async def _interrupted() -> None:
    """Returns on Ctrl-C or SIGTERM."""
    interrupted = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, interrupted.set)
    await interrupted.wait()


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _raise_file_limit(needed: int) -> None:
    """Raises this process's limit of open files, which its children inherit. Raises ConfigurationError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigurationError(f"CLIENTS: this number needs {needed:,} open files; `ulimit -Hn` allows {hard:,}")
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


if __name__ == "__main__":
    sys.exit(main())
