"""`python -m local`: the whole system on this machine, for manual use until Ctrl-C."""

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

from rich.console import Console

from local.processes import ProcessFailed, allow_many_files
from local.stack import Stack

_TRY_IT = """
[bold]Gatecast is running.[/bold] Press Ctrl-C to stop it.

  WebSocket clients   {url}
  @connections        {endpoint}
  SQS, DynamoDB       {backend}
  worker              {worker}/metrics
  queue               {queue}
  table               {table}
  logs                {logs}

Connect from another terminal, or from several:

  {python} -m websockets {url}

and enter these lines:

  {{"action":"join","room":"lobby"}}
  {{"action":"publish","room":"lobby","data":"hello"}}

SQS and DynamoDB serve only requests that are signed with this run's secret. For the AWS CLI and SDKs:

{exports}
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m local", description=__doc__)
    parser.add_argument("--workers", type=int, default=1, help="number of workers (default 1)")
    parser.add_argument("--port", type=int, default=4510, help="the gateway's port (default 4510; 0: a free one)")
    parser.add_argument("--fifo", action="store_true", help="a FIFO queue instead of a standard one")
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="an origin whose web pages may connect (default: all, as with API Gateway)",
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    allow_many_files()
    console = Console(highlight=False, soft_wrap=True)
    try:
        return asyncio.run(_run(console, options))
    except (FileNotFoundError, ProcessFailed, OSError) as error:
        console.print(str(error), style="red", markup=False)
        return 1


async def _run(console: Console, options: argparse.Namespace) -> int:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with Stack.running(
        workers=options.workers, port=options.port, fifo=options.fifo, allowed_origins=options.allow_origin
    ) as stack:
        console.print(_invitation(stack))
        await _until(stopped, stack)
        console.print("stopping …")
    return 0


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


def _invitation(stack: Stack) -> str:
    return _TRY_IT.format(
        url=stack.gateway.url,
        endpoint=stack.gateway.endpoint,
        backend=stack.backend.ministack.url,
        worker=stack.workers[0].url if stack.workers else "none:",
        queue=stack.backend.queues.url,
        table=stack.backend.table,
        logs=stack.directory,
        exports="\n".join(f"  export {name}={value}" for name, value in stack.backend.ministack.environment().items()),
        python=os.path.relpath(sys.executable) if Path(sys.executable).is_relative_to(Path.cwd()) else sys.executable,
    )


if __name__ == "__main__":
    sys.exit(main())
