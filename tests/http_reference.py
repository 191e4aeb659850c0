"""docs/reference-http.md, made from docs/openapi.yaml. `python -m tests.http_reference` writes it."""

import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from tests import openapi
from tests.openapi import Described, resolved

FILE: Final = Path(__file__).parents[1] / "docs" / "reference-http.md"
_REFERENCE: Final = re.compile(r"#/components/schemas/(\w+)")
_JSON: Final = "application/json"
_WIDTH: Final = 140


def text() -> str:
    info = openapi.document()["info"]
    lines = [f"# {info['title']}", "", info["description"].strip(), ""]
    for tag in openapi.document()["tags"]:
        lines += [f"## {tag['name']}", "", tag["description"], ""]
        for each in openapi.operations():
            if each.operation["tags"] == [tag["name"]]:
                lines += _operation(each)
    lines += ["## Bodies", ""]
    for name, schema in openapi.document()["components"]["schemas"].items():
        if schema.get("type") == "object":
            lines += _body(name, schema)
    return "\n".join(lines).rstrip() + "\n"


def _operation(each: Described) -> Iterator[str]:
    yield from (f"### {each.operation['summary']}", "", f"`{each.method} {each.path}`", "")
    if description := each.operation.get("description"):
        yield from (*textwrap.wrap(description, _WIDTH, break_long_words=False, break_on_hyphens=False), "")
    yield from ("| | | |", "|---|---|---|")
    for parameter in each.parameters:
        yield f"| {parameter['in']} | `{parameter['name']}` | {_constrained(parameter)} |"
    if each.content:
        kinds = ", ".join(f"`{kind}`" for kind in each.content)
        (body,) = {_named(content["schema"]) for content in each.content.values()} if len(each.content) == 1 else {""}
        yield f"| body | {kinds} | {body or resolved(each.operation['requestBody'])['description']} |"
    for status, response in each.responses.items():
        if status < "400":
            yield f"| response | {status} | {response['description']}: {_named(response['content'][_JSON]['schema'])} |"
    errors = ", ".join(status for status in each.responses if status >= "400")
    yield from (f"| errors | {errors} | [Errors](#errors) |", "")


def _body(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"### {name}", "")
    if description := schema.get("description"):
        yield from (description, "")
    yield from ("| field | type | |", "|---|---|---|")
    for field, each in schema["properties"].items():
        required = "" if field in schema.get("required", ()) else " (optional)"
        yield f"| `{field}` | {_type(each)} | {resolved(each).get('description', '')}{required} |"
    yield ""


def _constrained(parameter: Mapping[str, Any]) -> str:
    limits = _limits(resolved(parameter["schema"]))
    return f"{parameter['description']}{f' ({limits})' if limits else ''}"


def _type(schema: Mapping[str, Any]) -> str:
    if "items" in schema:
        count = f", at most {schema['maxItems']:,}" if "maxItems" in schema else ""
        return f"array of {_type(schema['items'])}{count}"
    if found := _REFERENCE.search(schema.get("$ref", "")):
        return "name" if found[1] == "Name" else _link(found[1])
    if "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema["enum"])
    kind = schema.get("type", "string" if "const" in schema else "any")
    named = " or ".join(kind) if isinstance(kind, list) else kind
    limits = _limits(schema)
    return f"{named}, {limits}" if limits else str(named)


def _limits(schema: Mapping[str, Any]) -> str:
    """What a value is restricted to, in words."""
    if schema.get("pattern", "").startswith("^[!-~]"):
        return f"1 to {re.findall(r'[0-9]+', schema['pattern'])[1]} characters from `!` to `~`"
    if "exclusiveMinimum" in schema:
        return f"above {schema['exclusiveMinimum']}, up to {schema['maximum']:,}"
    if "minimum" in schema and "maximum" in schema:
        default = f", by default {schema['default']:,}" if "default" in schema else ""
        return f"{schema['minimum']} to {schema['maximum']:,}{default}"
    return f"by default {schema['default']}" if "default" in schema else ""


def _named(schema: Mapping[str, Any]) -> str:
    found = _REFERENCE.search(schema.get("$ref", ""))
    return _link(found[1]) if found else ""


def _link(name: str) -> str:
    return f"[{name}](#{name.lower()})"


if __name__ == "__main__":
    FILE.write_text(text())
