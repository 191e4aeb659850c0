"""The demo's final output."""

import sys
from pathlib import Path
from typing import Final

from rich.table import Table

from local.demo.scenario import Result
from local.demo.system import EmbeddedSystem
from local.gateway.control import PREFIX

_INVITATION: Final = """
[bold]Everything keeps running.[/bold] Press Ctrl-C to stop it.

  WebSocket clients   {url}
  worker              {metrics}
  gateway             {counters}
  SQS, DynamoDB       {aws}
  queue               {queue}
  table               {table}
  logs                {logs}

Connect from another terminal, or from several:

  {python} -m websockets {url}

and type, line by line:

  {{"action":"join","room":"{room}"}}
  {{"action":"publish","room":"{room}","data":"hello"}}

In a browser's console:

  ws = new WebSocket("{url}")
  ws.onmessage = message => console.log(message.data)
  ws.onopen = () => ws.send('{{"action":"join","room":"{room}"}}')
"""


def summary(result: Result) -> Table:
    """The demo's results as a table; failed expectations are red."""
    tally = result.tally
    rows: list[tuple[str, str, bool]] = [
        ("broadcasts", f"{tally.broadcasts:,}", True),
        ("deliveries expected", f"{tally.expected:,}", True),
        ("deliveries received", f"{tally.received:,}", True),
        ("missing", f"{tally.missing:,}", not tally.missing),
        ("duplicates", f"{tally.duplicates:,}", True),
        ("received by others", f"{tally.strays:,}", not tally.strays),
        ("connections lost", f"{result.lost:,}", not result.lost),
        ("gone connections reaped", f"{result.reaped:,} of {result.dropped:,}", result.reaped == result.dropped),
        *((f"publish to receive, p{each}", f"{tally.percentile(each) * 1_000:,.0f} ms", True) for each in (50, 95, 99)),
        ("posts per second", f"{result.posts_per_second:,.0f}", True),
    ]
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value, passed in rows:
        table.add_row(name, value, style=None if passed else "bold red")
    return table


def invitation(system: EmbeddedSystem) -> str:
    """How to connect to the running system."""
    python = Path(sys.executable)
    return _INVITATION.format(
        python=python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python,
        url=system.gateway.url,
        metrics=f"{system.worker.url}/metrics",
        room="lobby",
        counters=f"{system.gateway.endpoint.rpartition('/')[0]}{PREFIX}counters",
        aws=system.backend.ministack.url,
        table=system.table,
        queue=system.backend.queues.url,
        logs=system.directory,
    )
