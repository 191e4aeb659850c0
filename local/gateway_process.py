"""The gateway with Gatecast's routes in its own process, for load tests in which the gateway needs a core of its own.

`python -m local.gateway_process --port 8080` serves until SIGTERM or Ctrl-C. The routes find the table and the queue by
their usual variables; `@connections` calls must be signed with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (and
AWS_SESSION_TOKEN) for AWS_REGION. `GatewayProcess` starts such a process; `GatewayControl` is a client of a running
gateway's control interface.
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

from gatecast.emulator.control import PREFIX
from gatecast.emulator.faults import Rule
from gatecast.emulator.limits import Limits
from gatecast.emulator.server import Gateway
from gatecast.emulator.sigv4 import Credentials
from local.aws_environment import CREDENTIALS, REGION, without_aws
from local.page import pages
from local.processes import LOOPBACK, Process, allow_many_files, free_port

ROOT: Final = Path(__file__).parents[1]
STAGE: Final = "local"
_READY_SECONDS: Final = 30.0


class GatewayControl:
    """Controls the gateway at `endpoint`. Each method blocks for one HTTP request."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.url = f"ws{endpoint.removeprefix('http')}"
        self._control = f"{endpoint.rpartition('/')[0]}{PREFIX}"

    def counters(self) -> dict[str, Any]:
        """The Counters, as decoded from JSON: keys are strings."""
        counters: dict[str, Any] = self._call("GET", "counters")
        return counters

    def connections(self) -> dict[str, dict[str, str | None]]:
        """The open connections, by id; `client` is the query parameter of that name, or None."""
        connections: dict[str, dict[str, str | None]] = self._call("GET", "connections")
        return connections

    def drop(self, connection_ids: Iterable[str]) -> int:
        """Aborts these clients' connections without `$disconnect`; returns how many were connected."""
        dropped: int = self._call("POST", "drop", list(connection_ids))["dropped"]
        return dropped

    def replace_faults(self, rules: Iterable[Rule]) -> None:
        self._call("PUT", "faults", list(rules))

    def _call(self, method: str, name: str, body: Any = None) -> Any:
        data = None if body is None else msgspec.json.encode(body)
        request = urllib.request.Request(  # noqa: S310 - http only
            f"{self._control}{name}", data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            return json.loads(response.read() or "null")


class GatewayProcess(GatewayControl):
    """A gateway in a child process. A context manager that stops the process."""

    def __init__(self, process: Process, port: int) -> None:
        super().__init__(f"http://{LOOPBACK}:{port}/{STAGE}")
        self.process = process

    @classmethod
    def start(cls, environment: Mapping[str, str], *, log: Path, limits: Limits | None = None) -> Self:
        """Returns when the gateway responds. `environment` is the routes' environment. Raises ProcessFailed."""
        port = free_port()
        command = [sys.executable, "-m", "local.gateway_process", "--port", str(port)]
        if limits:
            command += ["--limits", msgspec.json.encode(limits).decode()]
        process = Process.start(
            command,
            environment={
                **without_aws(os.environ),
                "GATECAST_CONNECTIONS_ENDPOINT": f"http://{LOOPBACK}:{port}/{STAGE}",
                **environment,
            },
            log=log,
            directory=ROOT,
        )
        gateway = cls(process, port)
        try:
            process.wait_until_responding(f"{gateway._control}counters", timeout_seconds=_READY_SECONDS)
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
    parser.add_argument("--port", type=int, default=0, help="default: a free port")
    parser.add_argument("--limits", default="{}", help="the Limits that differ from the defaults, as JSON")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a host name by which it may be addressed, besides --host and those of the loopback address",
    )
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="an origin whose web pages may connect (default: all, as with API Gateway)",
    )
    options = parser.parse_args()
    allow_many_files()
    uvloop.run(_serve(options))


async def _serve(options: argparse.Namespace) -> None:
    from local.route_table import ROUTES  # noqa: PLC0415 - `GatewayProcess` itself needs no routes

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
        allowed_hosts=options.allow_host,
        allowed_origins=options.allow_origin,
        pages=pages(),
    )
    async with gateway:
        sys.stdout.write(f"{gateway.url}\n")
        sys.stdout.flush()
        await stopped.wait()


if __name__ == "__main__":
    main()
