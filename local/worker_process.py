"""A worker as in production: `python -m worker` in its own process, configured only by its environment."""

import os
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

from prometheus_client.parser import text_string_to_metric_families

from local.aws_environment import without_aws
from local.backend import Backend
from local.processes import LOOPBACK, Process, free_port

ROOT: Final = Path(__file__).parents[1]
_READY_SECONDS: Final = 30.0


class WorkerProcess:
    """One worker. `process` controls it and has its exit code; `url` serves its metrics and health."""

    def __init__(self, process: Process, url: str) -> None:
        self.process = process
        self.url = url

    @classmethod
    def start(
        cls, backend: Backend, connections_endpoint: str, *, log: Path, settings: Mapping[str, str] | None = None
    ) -> Self:
        """Starts a worker and returns immediately. `settings` are additional variables, which take precedence."""
        port = free_port()
        variables = {
            **without_aws(os.environ),
            **backend.environment(),
            "GATECAST_CONNECTIONS_ENDPOINT": connections_endpoint,
            "GATECAST_HTTP_HOST": LOOPBACK,
            "GATECAST_HTTP_PORT": str(port),
            **(settings or {}),
        }
        command = [sys.executable, "-m", "worker"]
        process = Process.start(command, environment=variables, log=log, directory=ROOT)
        return cls(process, f"http://{LOOPBACK}:{port}")

    def wait_until_ready(self, timeout_seconds: float = _READY_SECONDS) -> None:
        """Blocks until `/readyz` returns 200. Raises ProcessFailed with the end of its log."""
        self.process.wait_until_responding(f"{self.url}/readyz", timeout_seconds=timeout_seconds)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels; 0.0 if there are none."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as response:  # noqa: S310 - http, loopback
            families = text_string_to_metric_families(response.read().decode())
        samples = (sample for family in families for sample in family.samples if sample.name == name)
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())
