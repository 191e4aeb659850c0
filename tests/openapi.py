"""docs/openapi.yaml, for tests: its operations, and whether requests and responses are as it describes them."""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml
from jsonschema import Draft202012Validator

FILE: Final = Path(__file__).parents[1] / "docs" / "openapi.yaml"
METHODS: Final = ("get", "put", "post", "delete", "patch")


class Described(NamedTuple):
    """An operation, with the parameters of its path among its own, and references replaced at the first level."""

    method: str
    path: str
    operation: Mapping[str, Any]
    parameters: tuple[Mapping[str, Any], ...]

    @property
    def responses(self) -> Mapping[str, Mapping[str, Any]]:
        return {status: resolved(each) for status, each in self.operation["responses"].items()}

    @property
    def content(self) -> Mapping[str, Any]:
        """The bodies of requests, by content type."""
        content: Mapping[str, Any] = resolved(self.operation.get("requestBody", {})).get("content", {})
        return content


@cache
def document() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return read


def resolved(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the value refers to; members beside the reference remain."""
    if "$ref" not in value:
        return value
    found: Any = document()
    for part in value["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return {**found, **{name: each for name, each in value.items() if name != "$ref"}}


def operations() -> Iterator[Described]:
    for path, item in document()["paths"].items():
        for method, operation in item.items():
            if method in METHODS:
                given = [*item.get("parameters", ()), *operation.get("parameters", ())]
                yield Described(method.upper(), path, operation, tuple(map(resolved, given)))


def described(method: str, path: str) -> Described | None:
    """The operation of a request to this path, without a query. Of several paths, the one with most around its name."""
    matching = [
        each
        for each in operations()
        if each.method == method and re.fullmatch(re.sub(r"\{\w+\}", ".+", each.path), path, re.DOTALL)
    ]
    return max(matching, key=lambda each: len(each.path), default=None)


def check_body(content: Mapping[str, Any], content_type: str, body: bytes) -> None:
    """Raises KeyError for another content type, ValidationError for another body."""
    schema = content[content_type.partition(";")[0]]["schema"]
    validator = Draft202012Validator({**schema, "components": document()["components"]})
    validator.validate(json.loads(body))


def check_response(method: str, path: str, status: int, headers: Mapping[str, str], body: bytes) -> None:
    """Raises KeyError if the operation describes no such status or type, ValidationError for another body."""
    operation = described(method, path)
    assert operation, f"no operation is described for {method} {path}"
    check_body(
        operation.responses[str(status)]["content"],
        {name.lower(): value for name, value in headers.items()}["content-type"],
        body,
    )
