"""Templates of CloudFormation and SAM as plain values: short tags, parameters, conditions and intrinsic functions.

Only what is asked for is resolved, so that the rest of a template may contain anything. A resource's `Ref` is its name,
where its properties give it one, or else its logical id; the `Arn` of a function ends in its logical id.
"""

import base64
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from gatecast.emulator.config import ConfigurationError
from gatecast.emulator.defaults import ACCOUNT_ID

FUNCTIONS: Final = ("AWS::Serverless::Function", "AWS::Lambda::Function")
_ALIASES: Final = ("AWS::Lambda::Alias", "AWS::Lambda::Version")
_NAMES: Final = ("FunctionName", "TableName", "QueueName", "TopicName", "BucketName")
_VARIABLE: Final = re.compile(r"\$\{(!?)([^}]*)\}")
_NOT_RESOLVED: Final = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")
_CONDITIONS: Final = ("Fn::Equals", "Fn::And", "Fn::Or", "Fn::Not", "Condition")


class Resource(NamedTuple):
    """A resource whose condition holds; `properties` are not resolved yet."""

    name: str
    type: str
    properties: Mapping[str, Any]
    metadata: Mapping[str, Any]


class Template:
    """A parsed template with its parameters. `resources` are those whose conditions hold, by logical id.

    `referenced` has the logical ids of all resources that resolved values refer to. Raises ConfigurationError, from
    every method.
    """

    def __init__(self, path: Path, parameters: Mapping[str, str], *, region: str) -> None:
        self.path = path
        self._document = _parsed(path)
        self._given = parameters
        self._pseudo = {
            "AWS::Region": region,
            "AWS::AccountId": ACCOUNT_ID,
            "AWS::Partition": "aws",
            "AWS::URLSuffix": "amazonaws.com",
            "AWS::StackName": "local",
            "AWS::StackId": f"arn:aws:cloudformation:{region}:{ACCOUNT_ID}:stack/local/0",
            "AWS::NoValue": None,
        }
        self.referenced: set[str] = set()
        declared = self._section("Parameters")
        if unknown := parameters.keys() - declared.keys():
            there = ", ".join(declared) or "none"
            raise self.error("Parameters", f"there is no {min(unknown)}; there are: {there}")
        self.resources = {
            name: Resource(name, str(each.get("Type")), each.get("Properties") or {}, each.get("Metadata") or {})
            for name, each in self._section("Resources").items()
            if isinstance(each, dict) and ("Condition" not in each or self._condition(each["Condition"]))
        }

    def globals(self, kind: str) -> Mapping[str, Any]:
        """SAM's global properties of this kind of resource, not resolved."""
        found = self._section("Globals").get(kind)
        return found if isinstance(found, dict) else {}

    def of_type(self, *types: str) -> list[Resource]:
        return [resource for resource in self.resources.values() if resource.type in types]

    def resolve(self, value: Any) -> Any:
        """The value with its intrinsic functions replaced. Members without a value are left out."""
        match value:
            case {"Ref": str(name)} if len(value) == 1:
                return self._ref(name)
            case dict() if len(value) == 1 and (name := next(iter(value))).startswith("Fn::"):
                return self._function(name, value[name])
            case dict():
                resolved = {key: self.resolve(each) for key, each in value.items()}
                return {key: each for key, each in resolved.items() if each is not None}
            case list():
                return [found for each in value if (found := self.resolve(each)) is not None]
        return value

    def text(self, value: Any) -> str:
        """A resolved value as text."""
        resolved = self.resolve(value)
        if isinstance(resolved, bool):
            return "true" if resolved else "false"
        return "" if resolved is None else resolved if isinstance(resolved, str) else json.dumps(resolved)

    def error(self, place: str, problem: str) -> ConfigurationError:
        return ConfigurationError(f"{self.path}: {place}: {problem}")

    def _function(self, name: str, given: Any) -> Any:
        if name in _CONDITIONS:
            return self._condition({name: given})
        arguments = given if isinstance(given, list) else [given]
        functions: dict[str, Callable[[], Any]] = {
            "Fn::GetAtt": lambda: self._attribute(*_two(given)),
            "Fn::Sub": lambda: self._sub(*arguments),
            "Fn::Join": lambda: self.text(arguments[0]).join(map(self.text, self.resolve(arguments[1]))),
            "Fn::If": lambda: self.resolve(arguments[1 if self._condition(arguments[0]) else 2]),
            "Fn::Select": lambda: self.resolve(arguments[1])[int(self.text(arguments[0]))],
            "Fn::Split": lambda: self.text(arguments[1]).split(self.text(arguments[0])),
            "Fn::FindInMap": lambda: self._mapped(*map(self.text, arguments[:3])),
            "Fn::Base64": lambda: base64.b64encode(self.text(given).encode()).decode(),
        }
        if name not in functions:
            raise self.error(name, f"it is not supported, in {json.dumps(given, default=str)[:80]}")
        try:
            return functions[name]()
        except (IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise self.error(name, f"{error!r}, in {json.dumps(given, default=str)[:80]}") from error

    def _ref(self, name: str) -> Any:
        if name in self._pseudo:
            return self._pseudo[name]
        if name in self._section("Parameters"):
            return self._parameter(name)
        base = name.partition(".")[0]  # SAM: `Function.Alias`, `Function.Version`
        if base not in self.resources:
            raise self.error("Ref", f"there is no {name}, or its condition does not hold")
        resource = self.resources[base]
        self.referenced.add(base)
        if resource.type in _ALIASES:
            return self._attribute(self.function_name(resource.properties.get("FunctionName")), "Arn")
        if base != name and resource.type in FUNCTIONS:
            return self._attribute(base, "Arn")
        given = next((resource.properties[key] for key in _NAMES if key in resource.properties), None)
        return base if given is None or resource.type in FUNCTIONS else self.text(given)

    def function_name(self, reference: Any) -> str:
        """The logical id of a function in the template, or the name of another one, from a name or an ARN."""
        text = self.text(reference)
        name = text.rpartition(":function:")[2].partition(":")[0]
        for resource in self.of_type(*FUNCTIONS):
            if resource.name == name or self.text(resource.properties.get("FunctionName")) == name:
                return resource.name
        return name

    def _attribute(self, name: str, attribute: str) -> str:
        resource = self.resources.get(name)
        if resource:
            self.referenced.add(name)
        region = self._pseudo["AWS::Region"]
        if attribute == "Arn" and (resource is None or resource.type in FUNCTIONS):
            return f"arn:aws:lambda:{region}:{ACCOUNT_ID}:function:{name}"
        if resource is None:
            raise self.error("Fn::GetAtt", f"there is no {name}, or its condition does not hold")
        if attribute in {"ApiEndpoint", "ApiId"}:
            return name if attribute == "ApiId" else f"wss://{name}.execute-api.{region}.amazonaws.com"
        return f"{name}.{attribute}"

    def _sub(self, text: str, values: Mapping[str, Any] | None = None) -> str:
        def replaced(found: re.Match[str]) -> str:
            literal, name = found[1], found[2].strip()
            if literal:
                return f"${{{name}}}"
            if values and name in values:
                return self.text(values[name])
            owner, dot, attribute = name.partition(".")
            if dot and attribute not in {"Alias", "Version"} and name not in self._pseudo:
                return self._attribute(owner, attribute)
            return self.text({"Ref": name})

        return _VARIABLE.sub(replaced, text)

    def _parameter(self, name: str) -> Any:
        declared = self._section("Parameters")[name]
        if name in self._given:
            value: Any = self._given[name]
        elif "Default" in declared and not str(declared.get("Type")).startswith("AWS::SSM::"):
            value = declared["Default"]
        else:
            raise self.error("Parameters", f"{name} has no default here: give --parameter {name}=VALUE")
        is_list = "List" in str(declared.get("Type"))
        return [each.strip() for each in str(value).split(",")] if is_list else str(value)

    def _mapped(self, *keys: str) -> Any:
        value: Any = self._section("Mappings")
        for key in keys:
            value = value[key]
        return value

    def _condition(self, value: Any) -> bool:
        match value:
            case str(name) | {"Condition": str(name)}:
                conditions = self._section("Conditions")
                if name not in conditions:
                    raise self.error("Conditions", f"there is no {name}")
                return self._condition(conditions[name])
            case {"Fn::Equals": [one, other]}:
                return self.text(one) == self.text(other)
            case {"Fn::And": list(each)}:
                return all(map(self._condition, each))
            case {"Fn::Or": list(each)}:
                return any(map(self._condition, each))
            case {"Fn::Not": [one]}:
                return not self._condition(one)
        raise self.error("Conditions", f"not supported: {json.dumps(value, default=str)[:80]}")

    def _section(self, name: str) -> Mapping[str, Any]:
        section = self._document.get(name) or {}
        if not isinstance(section, dict):
            raise self.error(name, "expected a mapping")
        return section


class _Loader(yaml.SafeLoader):
    """YAML with CloudFormation's short tags, as the long form. `On` and `No` are names, and dates are texts."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own attribute
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NOT_RESOLVED]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _tagged(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    value: Any
    match node:
        case yaml.ScalarNode():
            value = loader.construct_scalar(node)
        case yaml.SequenceNode():
            value = loader.construct_sequence(node, deep=True)
        case _:
            value = loader.construct_mapping(node, deep=True)  # type: ignore[arg-type] # the third kind of node
    return {suffix if suffix in {"Ref", "Condition"} else f"Fn::{suffix}": value}


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("(?i:true|false)\\Z"), list("tTfF"))
_Loader.add_multi_constructor("!", _tagged)


def _parsed(path: Path) -> dict[str, Any]:
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - it is a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: it cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: it is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict) or not isinstance(document.get("Resources"), dict):
        raise ConfigurationError(f"{path}: it is no template: there are no Resources")
    return document


def _two(given: Any) -> tuple[str, str]:
    name, attribute = given.split(".", 1) if isinstance(given, str) else given
    return name, attribute
