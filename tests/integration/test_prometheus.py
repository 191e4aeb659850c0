"""A real Prometheus scrapes two real workers under the load of the demo: every panel and every rule has data."""

import asyncio
import math
import os
import sys
from pathlib import Path

import msgspec

from local.demo.system import EmbeddedSystem, running
from local.worker_process import WorkerProcess
from tests.observability import CHECKOUT, RULE_TESTS, queries, rules
from tests.prometheus import Prometheus, Sample
from tests.worker_process import eventually

EMPTY_WHEN_ALL_IS_WELL = {
    ("Overview", "Alerts that are firing"),
    ("Overview", "Rate cut"),
    ("Delivery", "Rate cut"),
    ("Dependencies", "Rate cut"),
    ("Dependencies", "Credentials expire in"),  # those of a stand-in never do
}
"""Panels that are rightly empty here; promtool shows below that they have data when they should."""


async def demo(system: EmbeddedSystem) -> None:
    """The demo, small, in a process of its own: everybody comes, talks, a tenth vanishes and is reaped."""
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


def says_something(samples: list[Sample]) -> bool:
    return any(math.isfinite(sample.value) for sample in samples)


async def test_every_panel_and_every_rule_has_data(tmp_path: Path) -> None:
    with running() as system, Prometheus.serving(tmp_path / "prometheus") as prometheus:
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
                if not says_something(prometheus.ask(query.of_everything(interval="1m")))
            }
            assert without_data == EMPTY_WHEN_ALL_IS_WELL
            for rule in rules():  # an alert's expression has data only while something is wrong
                samples = prometheus.ask(rule.record or rule.expr)
                assert rule.alert or says_something(samples), rule
            assert prometheus.ask('ALERTS{alertstate="firing"}') == []


def test_what_is_empty_here_has_data_when_it_should() -> None:
    shown = {
        case["expr"]
        for path in RULE_TESTS
        for test in msgspec.yaml.decode(path.read_bytes())["tests"]
        for case in test.get("promql_expr_test", [])
        if case["exp_samples"]
    }
    for query in queries():
        if (query.dashboard, query.panel) in EMPTY_WHEN_ALL_IS_WELL:
            assert query.of_everything() in shown
