"""What a person reads when a local stack is running: its addresses, and how to use it."""

import os
import sys
from pathlib import Path
from typing import Final

from local.discovery import RunningStack
from local.gateway_process import STAGE

_TEXT: Final = """
  in a browser        {page}
  WebSocket clients   {url}
  @connections        {endpoint}
  HTTP API            {http_api}
  workers             {workers}
  logs                {logs}

In a browser, open the first address, in several tabs. (Pages without an address of their own may not connect to this
machine.) Or connect from another terminal, or from several:

  {python} -m websockets {client}

and type, one line at a time; only members may publish, so wait for the response to the first:

  {{"action":"join","room":"lobby"}}
  {{"action":"publish","room":"lobby","data":"hello"}}

`make top` and `make redrive` find this stack by themselves, and so does `{python} -m local.attach …`, the commands of
`gatecast`: docs/reference-cli.md. For a program of yours, the AWS CLI and SDKs, paste into
another terminal (the secret is new at each start, and nothing else is accepted):

{exports}
"""


def invitation(stack: RunningStack, *, logs: Path, token: bool = False) -> str:
    """The text. `token`: whether clients need a token of `make token`."""
    endpoint = stack.environment["GATECAST_CONNECTIONS_ENDPOINT"]
    url = f"ws{endpoint.removeprefix('http')}"
    return _TEXT.format(
        page=f"{endpoint.removesuffix(STAGE)}",
        url=url,
        endpoint=endpoint,
        http_api=stack.environment.get("GATECAST_HTTP_API", "none"),
        workers=" ".join(f"{worker}/metrics" for worker in stack.workers) or "none",
        logs=logs,
        client=f'"{url}?token=$(make -s token)"' if token else url,
        exports=stack.exports(),
        python=os.path.relpath(sys.executable) if Path(sys.executable).is_relative_to(Path.cwd()) else sys.executable,
    )
