"""Parse docker-compose.yml and the Dockerfile for tests: what each service runs, and with which environment.

Supports only what these two files use of their formats.
"""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

CHECKOUT = Path(__file__).parents[1]


@dataclass(slots=True)
class Image:
    """The settings of a stage of the Dockerfile. A later instruction wins."""

    environment: dict[str, str] = field(default_factory=dict)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)
    user: str = "root"


@dataclass(frozen=True, slots=True)
class Service:
    """A service as Compose starts it: its own settings override its image's. `definition` is as written."""

    name: str
    definition: Mapping[str, Any]
    image: Image

    @property
    def command(self) -> list[str]:
        own: list[str] | None = self.definition.get("command")
        return self.image.entrypoint + (self.image.command if own is None else own)

    @property
    def environment(self) -> dict[str, str]:
        return {**self.image.environment, **self.definition.get("environment", {})}

    @property
    def healthcheck(self) -> list[str]:
        """The health check command, or an empty list."""
        own = self.definition.get("healthcheck", {}).get("test")
        return list(own[1:]) if own else self.image.healthcheck


def services(*overrides: str) -> dict[str, Service]:
    """The services of docker-compose.yml, merged with these override files. All variables have their defaults."""
    composed: dict[str, Any] = {}
    for name in ("docker-compose.yml", *overrides):
        text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (CHECKOUT / name).read_text())
        composed = _merged(composed, yaml.safe_load(text))
    return {
        name: Service(name, definition, images()[definition["build"]["target"]] if "build" in definition else Image())
        for name, definition in composed["services"].items()
    }


def images() -> dict[str, Image]:
    """The stages of the Dockerfile by name."""
    stages: dict[str, Image] = {}
    stage = Image()
    for name, value in _instructions():
        match name:
            case "FROM":
                parent, _, child = value.partition(" AS ")
                base = stages.get(parent, Image())
                stage = stages[child] = Image(
                    dict(base.environment), base.entrypoint, base.command, base.healthcheck, base.user
                )
            case "ENV":
                stage.environment |= dict(assignment.split("=", 1) for assignment in shlex.split(value))
            case "ENTRYPOINT":
                stage.entrypoint = json.loads(value)
            case "CMD":
                stage.command = json.loads(value)
            case "HEALTHCHECK":
                stage.healthcheck = json.loads(value[value.index("CMD") + len("CMD") :])
            case "USER":
                stage.user = value
    return stages


def _instructions() -> list[tuple[str, str]]:
    lines = [line for line in (CHECKOUT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", "")
    split = (line.partition(" ") for line in text.splitlines() if line)
    return [(name, " ".join(value.split()) if name != "HEALTHCHECK" else value) for name, _, value in split]


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merges mappings and replaces everything else, as Compose does with the settings that these overrides contain."""
    merged = dict(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merged(merged[name], value) if both else value
    return merged
