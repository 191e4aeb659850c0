"""A real Prometheus with the rules and the configuration of deploy/observability, on a free port of this machine.

It scrapes once per second. `faster` divides the ranges and durations of rules, so that ten minutes pass in a few
seconds; thresholds stay.
"""

import json
import re
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import msgspec

from local.processes import LOOPBACK, Process, free_port
from tests.observability import FOLDER, RULES, tool

_SCRAPE: Final = "1s"
_START_SECONDS: Final = 30
_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_DURATION: Final = re.compile(r"(?<=\[)(\d+)([smhd])(?=])|(?<=offset )(\d+)([smhd])|^(\d+)([smhd])$")


class Sample(NamedTuple):
    """One series and its value at one time."""

    labels: Mapping[str, str]
    value: float


class Line(NamedTuple):
    """One series over time: (seconds since the epoch, value)."""

    labels: Mapping[str, str]
    points: Sequence[tuple[float, float]]


class Prometheus:
    """Use `serving`. It scrapes the targets last given to `watch`."""

    def __init__(self, process: Process, url: str, targets: Path) -> None:
        self.process = process
        self.url = url
        self._targets = targets

    @classmethod
    @contextmanager
    def serving(cls, directory: Path, *, faster: int = 1) -> Iterator[Self]:
        """Runs Prometheus during the block, all its files in `directory`. Skips the test if it is missing."""
        program = tool("prometheus")
        directory.mkdir()
        targets = directory / "targets.json"
        targets.write_text("[]")
        for path in RULES:
            (directory / path.name).write_bytes(_shortened_rules(path, faster))
        config = directory / "prometheus.yml"
        config.write_bytes(_configuration(targets))
        port = free_port()
        command = [
            program,
            f"--config.file={config}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address={LOOPBACK}:{port}",
            "--log.level=warn",
        ]
        with Process.start(command, environment={}, log=directory / "prometheus.log") as process:
            url = f"http://{LOOPBACK}:{port}"
            process.wait_until_responding(f"{url}/-/ready", timeout_seconds=_START_SECONDS)
            yield cls(process, url, targets)

    def watch(self, ports: Sequence[int]) -> None:
        """Scrape the workers at these ports of this machine from now on, and no others."""
        written = self._targets.with_suffix(".new")
        written.write_text(json.dumps([{"targets": [f"{LOOPBACK}:{port}" for port in ports]}]))
        written.replace(self._targets.with_suffix(".json"))

    def ask(self, expression: str) -> list[Sample]:
        """Evaluates the expression now."""
        found = self._get("query", query=expression)
        if found["resultType"] == "scalar":
            return [Sample({}, float(found["result"][1]))]
        return [Sample(each["metric"], float(each["value"][1])) for each in found["result"]]

    def ask_between(self, expression: str, start: float, end: float) -> list[Line]:
        """Evaluates the expression once per second between two times in seconds since the epoch."""
        found = self._get("query_range", query=expression, start=str(start), end=str(end), step="1")
        return [
            Line(each["metric"], [(float(at), float(value)) for at, value in each["values"]])
            for each in found["result"]
        ]

    def _get(self, what: str, **parameters: str) -> Any:
        """Raises HTTPError, with Prometheus' error text, if the expression cannot be evaluated."""
        url = f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as response:  # noqa: S310 - http, on the loopback address
            return json.load(response)["data"]


def _configuration(targets: Path) -> bytes:
    """The configuration for docker-compose, but with targets from a file and without Alertmanager."""
    config = msgspec.yaml.decode((FOLDER / "prometheus" / "prometheus.yml").read_bytes())
    config["global"] = {"scrape_interval": _SCRAPE, "scrape_timeout": _SCRAPE, "evaluation_interval": _SCRAPE}
    config["rule_files"] = [path.name for path in RULES]
    del config["alerting"]
    [job] = config["scrape_configs"]
    del job["dns_sd_configs"]
    job["file_sd_configs"] = [{"files": [targets.name], "refresh_interval": _SCRAPE}]
    return msgspec.yaml.encode(config)


def _shortened_rules(path: Path, faster: int) -> bytes:
    """The rules of a file, evaluated every second, with all durations shortened."""
    file = msgspec.yaml.decode(path.read_bytes())
    for group in file["groups"]:
        group.pop("interval", None)
        for rule in group["rules"]:
            for key in rule.keys() & {"expr", "for"}:
                rule[key] = shortened(rule[key], faster)
    return msgspec.yaml.encode(file)


def shortened(text: str, faster: int) -> str:
    """An expression with shortened ranges and offsets, or a shortened duration; four seconds is the minimum."""

    def shorter(duration: re.Match[str]) -> str:
        number, unit = [part for part in duration.groups() if part]
        return f"{max(4, int(number) * _SECONDS[unit] // faster)}s"

    return text if faster == 1 else _DURATION.sub(shorter, text)
