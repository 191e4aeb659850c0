"""A real Prometheus scrapes two real workers under the demo's load: every panel and every rule has data."""

import asyncio
import math
import os
import sys
from pathlib import Path

import msgspec

from local.demo.system import EmbeddedSystem, running
from local.resources import write_room_settings
from local.worker_process import WorkerProcess
from tests.observability import CHECKOUT, RULE_TESTS, queries, rules
from tests.prometheus import Prometheus, Sample
from tests.worker_process import eventually

EMPTY_WHEN_HEALTHY = {
    ("Overview", "Firing alerts"),
    ("Overview", "Rate cut"),
    ("Delivery", "Rate cut"),
    ("Dependencies", "Rate cut"),
    ("Dependencies", "Time until credentials expire"),  # ministack's never do
}
"""Panels that are correctly empty here; the promtool tests show that they have data when they should (see below)."""


async def demo(system: EmbeddedSystem) -> None:
    """The demo, small, in its own process: clients connect and publish; a tenth vanishes and is reaped."""
    size = {"CLIENTS": "150", "ROOMS": "10", "MESSAGES": "100"}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "local.demo",
        system.gateway.endpoint,
        env={**os.environ, **system.backend.environment(), **size},
        cwd=CHECKOUT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()


def has_data(samples: list[Sample]) -> bool:
    return any(math.isfinite(sample.value) for sample in samples)


async def test_every_panel_and_every_rule_has_data(tmp_path: Path) -> None:
    with running() as system, Prometheus.serving(tmp_path / "prometheus") as prometheus:
        write_room_settings(system.dynamodb, system.table, {"history_seconds": 3_600})
        second = WorkerProcess.start(system.backend, system.gateway.endpoint, log=system.directory / "second.log")
        with second.process:
            second.wait_until_ready()
            prometheus.watch([int(worker.url.rpartition(":")[2]) for worker in (system.worker, second)])
            await eventually(lambda: len(prometheus.ask("gatecast_ready == 1")) == 2)

            await demo(system)
            await asyncio.sleep(3)  # until it has been scraped, and the rules evaluated after that

            without_data = {
                (query.dashboard, query.panel)
                for query in queries()
                if not has_data(prometheus.ask(query.for_all_services(interval="1m")))
            }
            assert without_data == EMPTY_WHEN_HEALTHY
            for rule in rules():  # an alert's expression has data only while something is wrong
                samples = prometheus.ask(rule.record or rule.expr)
                assert rule.alert or has_data(samples), rule
            assert prometheus.ask('ALERTS{alertstate="firing"}') == []


def test_panels_that_are_empty_here_have_data_when_they_should() -> None:
    shown = {
        case["expr"]
        for path in RULE_TESTS
        for test in msgspec.yaml.decode(path.read_bytes())["tests"]
        for case in test.get("promql_expr_test", [])
        if case["exp_samples"]
    }
    for query in queries():
        if (query.dashboard, query.panel) in EMPTY_WHEN_HEALTHY:
            assert query.for_all_services() in shown
