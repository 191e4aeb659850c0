"""Evaluate the CloudFormation templates for tests: parameters, conditions and intrinsic functions.

Values that only AWS knows, such as a resource's ARN, stay `${Resource.Attribute}` unless the test provides them.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

FOLDER: Final = Path(__file__).parents[1] / "deploy" / "ecs"
NAMES: Final = ("foundation", "account", "data", "api", "http", "network", "observe", "worker", "events")
PSEUDO: Final = {
    "AWS::AccountId": "000000000000",
    "AWS::Partition": "aws",
    "AWS::Region": "us-east-1",
    "AWS::URLSuffix": "amazonaws.com",
}
_NO_VALUE: Final = object()


class _Loader(yaml.SafeLoader):
    """YAML with CloudFormation's short forms: `!Ref x` becomes `{"Ref": "x"}`, `!Sub x` `{"Fn::Sub": "x"}`."""


def _short_form(loader: _Loader, tag: str, node: yaml.Node) -> dict[str, Any]:
    value: Any
    match node:
        case yaml.MappingNode():
            value = loader.construct_mapping(node, deep=True)
        case yaml.SequenceNode():
            value = loader.construct_sequence(node, deep=True)
        case yaml.ScalarNode():
            value = loader.construct_scalar(node)
    return {tag if tag in {"Ref", "Condition"} else f"Fn::{tag}": value}


_Loader.add_multi_constructor("!", _short_form)


class Template:
    """One template, evaluated for these parameters; those with a default are optional."""

    def __init__(
        self, name: str, parameters: Mapping[str, str] | None = None, attributes: Mapping[str, str] | None = None
    ) -> None:
        """`attributes` are values that AWS would provide, by `Resource` (a Ref) or `Resource.Attribute`."""
        self.text = (FOLDER / f"{name}.yaml").read_text()
        self.source: dict[str, Any] = yaml.load(self.text, Loader=_Loader)  # noqa: S506 - a SafeLoader with tags
        self.parameters: dict[str, dict[str, Any]] = self.source.get("Parameters", {})
        defaults = {key: str(each["Default"]) for key, each in self.parameters.items() if "Default" in each}
        self._values = {**PSEUDO, **defaults, **(parameters or {})}
        self._attributes = dict(attributes or {})

    @property
    def resources(self) -> dict[str, dict[str, Any]]:
        """Those whose condition holds, evaluated."""
        return {
            name: self.evaluated(resource)
            for name, resource in self.source["Resources"].items()
            if "Condition" not in resource or self.holds(resource["Condition"])
        }

    @property
    def outputs(self) -> dict[str, Any]:
        """Those whose condition holds, evaluated."""
        return {
            name: self.evaluated(each["Value"])
            for name, each in self.source.get("Outputs", {}).items()
            if "Condition" not in each or self.holds(each["Condition"])
        }

    def properties(self, resource: str) -> dict[str, Any]:
        found: dict[str, Any] = self.resources[resource]["Properties"]
        return found

    def of_type(self, kind: str) -> dict[str, dict[str, Any]]:
        """The properties of all resources of a type, such as AWS::IAM::Role, by name."""
        return {name: each["Properties"] for name, each in self.resources.items() if each["Type"] == kind}

    def holds(self, condition: Any) -> bool:
        """Whether a condition holds; it is given by name or as an expression."""
        match condition:
            case str() | {"Condition": _}:
                name = condition if isinstance(condition, str) else condition["Condition"]
                return self.holds(self.source["Conditions"][name])
            case {"Fn::Equals": [left, right]}:
                return str(self.evaluated(left)) == str(self.evaluated(right))
            case {"Fn::Not": [negated]}:
                return not self.holds(negated)
            case {"Fn::And": conditions}:
                return all(map(self.holds, conditions))
            case {"Fn::Or": conditions}:
                return any(map(self.holds, conditions))
        raise NotImplementedError(f"{condition}")

    def evaluated(self, value: Any) -> Any:
        """The value with functions evaluated; AWS::NoValue is removed from lists and mappings."""
        match value:
            case dict() if len(value) == 1 and next(iter(value)).startswith(("Ref", "Fn::")):
                return self._function(value)
            case dict():
                found = {key: self.evaluated(each) for key, each in value.items()}
                return {key: each for key, each in found.items() if each is not _NO_VALUE}
            case list():
                return [each for each in map(self.evaluated, value) if each is not _NO_VALUE]
            case _:
                return value

    def _function(self, value: Mapping[str, Any]) -> Any:
        match value:
            case {"Ref": name} | {"Fn::GetAtt": name}:
                return _NO_VALUE if name == "AWS::NoValue" else self._named(name)
            case {"Fn::Sub": [text, variables]}:
                return self._substituted(text, {name: self.evaluated(each) for name, each in variables.items()})
            case {"Fn::Sub": text}:
                return self._substituted(text, {})
            case {"Fn::Join": [separator, parts]}:
                return separator.join(self.evaluated(parts))
            case {"Fn::If": [condition, then, otherwise]}:
                return self.evaluated(then if self.holds(condition) else otherwise)
            case {"Fn::Select": [index, {"Ref": name}]} if name in self._values:
                return self._values[name].split(",")[int(index)].strip()
            case {"Fn::Select": _} | {"Fn::GetAZs": _}:
                return f"${{{value}}}"
        raise NotImplementedError(f"{value}")

    def _named(self, name: str) -> str:
        if name in self._values:
            return self._values[name]
        return self._attributes.get(name, f"${{{name}}}")

    def _substituted(self, text: str, variables: Mapping[str, str]) -> str:
        def replacement(found: re.Match[str]) -> str:
            name = found[1]
            return variables[name] if name in variables else self._named(name)

        return re.sub(r"\$\{([^!}]+)\}", replacement, text)
