"""The gateway with Gatecast's routes in a process of its own, for loads that need a core for the gateway alone.

`python -m local.gateway_process --port 8080` serves until SIGTERM or Ctrl-C. The routes find the table and the queue by
their usual variables; `@connections` calls must be signed with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (and
AWS_SESSION_TOKEN) for AWS_REGION. `GatewayProcess` starts one; `GatewayControl` speaks to the control interface of one
that runs.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import uvloop

from local.gateway.control import PREFIX
from local.gateway.faults import Rule
from local.gateway.limits import Limits
from local.gateway.server import Gateway
from local.gateway.sigv4 import Credentials
from local.processes import LOOPBACK, Process, allow_many_files, free_port
from local.sdk import CREDENTIALS, REGION, without_aws

ROOT: Final = Path(__file__).parents[1]
STAGE: Final = "local"
_READY_SECONDS: Final = 30.0


class GatewayControl:
    """A gateway that runs elsewhere, at `endpoint`. Its methods block for the length of one HTTP request."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.url = f"ws{endpoint.removeprefix('http')}"
        self._control = f"{endpoint.rpartition('/')[0]}{PREFIX}"

    def counters(self) -> dict[str, Any]:
        """The Counters as JSON has them: keys are strings."""
        counters: dict[str, Any] = self._call("GET", "counters")
        return counters

    def connections(self) -> dict[str, dict[str, str | None]]:
        """The open connections, by id: `client` is what the query called so when it was made."""
        connections: dict[str, dict[str, str | None]] = self._call("GET", "connections")
        return connections

    def vanish(self, connection_ids: Iterable[str]) -> int:
        """Cuts these clients off without `$disconnect`; says how many were connected."""
        vanished: int = self._call("POST", "vanish", list(connection_ids))["vanished"]
        return vanished

    def replace_faults(self, rules: Iterable[Rule]) -> None:
        self._call("PUT", "faults", list(rules))

    def _call(self, method: str, name: str, body: Any = None) -> Any:
        data = None if body is None else msgspec.json.encode(body)
        request = urllib.request.Request(f"{self._control}{name}", data, method=method)  # noqa: S310 - http only
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return json.loads(answer.read() or "null")


class GatewayProcess(GatewayControl):
    """A gateway in a child process. A context manager that stops it."""

    def __init__(self, process: Process, port: int) -> None:
        super().__init__(f"http://{LOOPBACK}:{port}/{STAGE}")
        self.process = process

    @classmethod
    def start(cls, environment: Mapping[str, str], *, log: Path, limits: Limits | None = None) -> Self:
        """Returns when it answers. `environment` is the routes'. Raises ProcessFailed."""
        port = free_port()
        command = [sys.executable, "-m", "local.gateway_process", "--port", str(port)]
        if limits:
            command += ["--limits", msgspec.json.encode(limits).decode()]
        process = Process.start(
            command, environment={**without_aws(os.environ), **environment}, log=log, directory=ROOT
        )
        gateway = cls(process, port)
        try:
            process.wait_until_answering(f"{gateway._control}counters", timeout_seconds=_READY_SECONDS)
        except BaseException:
            process.stop()
            raise
        return gateway

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stop()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m local.gateway_process", description=__doc__)
    parser.add_argument(
        "--host", default=LOOPBACK, help="the address to listen on; in a container 0.0.0.0 (default %(default)s)"
    )
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--limits", default="{}", help="the Limits that differ from their defaults, as JSON")
    parser.add_argument(
        "--control-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a host name by which the control interface may be called, besides those of the loopback address",
    )
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="WebSocket clients with an Origin must have this one (default: all are accepted, as by API Gateway)",
    )
    options = parser.parse_args()
    allow_many_files()
    uvloop.run(_serve(options))


async def _serve(options: argparse.Namespace) -> None:
    from local.gatecast_routes import ROUTES  # noqa: PLC0415 - `GatewayProcess` itself needs no routes

    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    trusted = Credentials(
        os.environ.get("AWS_ACCESS_KEY_ID", CREDENTIALS.access_key_id),
        os.environ.get("AWS_SECRET_ACCESS_KEY", CREDENTIALS.secret_access_key),
        os.environ.get("AWS_SESSION_TOKEN"),
    )
    region = os.environ.get("AWS_REGION", REGION)
    gateway = Gateway(
        ROUTES,
        stage=STAGE,
        host=options.host,
        port=options.port,
        region=region,
        credentials=[trusted],
        limits=msgspec.json.decode(options.limits, type=Limits),
        control_hosts=options.control_host,
        allowed_origins=options.allow_origin,
    )
    async with gateway:
        sys.stdout.write(f"{gateway.url}\n")
        sys.stdout.flush()
        await stopped.wait()


if __name__ == "__main__":
    main()
