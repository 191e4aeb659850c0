"""The parameters of a deployment: a TOML file of names and values, checked before anything is created."""

import difflib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from deploy.ecs.placement import ARCHITECTURES
from deploy.ecs.stacks import DeployError, Parameter

_EXAMPLE: Final = "deploy/ecs/parameters.example.toml"
_OWN: Final = {"Region", "CheckZones", "HttpApi"}
"""Parameters of the script, which no template has."""
_SENDER: Final = re.compile(r"arn:[^:*?]+:(sns|events):[^*?]+")
_UNSAFE_WILDCARDS: Final = ('*"*', r"*\\*")
"""What EventBridge matches to texts with a quote or a backslash, which its wildcards write twice."""


def read_parameters(path: Path) -> dict[str, str]:
    """The parameters in a TOML file, as text. Raises DeployError."""
    try:
        read = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise DeployError(f"{path} does not exist: copy {_EXAMPLE} to it, and fill it in") from None
    except tomllib.TOMLDecodeError as error:
        raise DeployError(f"{path} is not valid TOML: {error}") from None
    for name, value in read.items():
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise DeployError(f"{path}: {name} must be a string or an integer")
    return {name: str(value) for name, value in read.items()}


def check(values: Mapping[str, str], known: Mapping[str, Sequence[Parameter]]) -> None:
    """Raise DeployError unless the templates have all these parameters and their combination is valid."""
    names = _OWN | {parameter.name for parameters in known.values() for parameter in parameters}
    for name in values.keys() - names:
        similar = difflib.get_close_matches(name, names, n=1)
        raise DeployError(f"No template has a parameter {name}" + (f"; did you mean {similar[0]}?" if similar else ""))
    if bool(values.get("VpcId")) != bool(values.get("SubnetIds")):
        raise DeployError("VpcId and SubnetIds belong together: set both, or neither to get a new VPC")
    if values.get("VpcId") and (values.get("ZoneA") or values.get("ZoneB")):
        raise DeployError("ZoneA and ZoneB are zones of a new VPC: remove them, or VpcId and SubnetIds")
    for name, allowed in (("CheckZones", ("yes", "no")), ("HttpApi", ("no", "yes")), ("Architecture", ARCHITECTURES)):
        if values.get(name, allowed[0]) not in allowed:
            raise DeployError(f"{name} is {values[name]!r}: expected {' or '.join(allowed)}")
    _check_rates(values, known)
    _check_events(values)
    _check_senders(values)


def _check_events(values: Mapping[str, str]) -> None:
    """Raise DeployError unless the rule of events.yaml can be created: CloudFormation would reject it minutes later."""
    given = {name: values.get(name, "") for name in ("EventPattern", "EventRoom", "EventRoomPath")}
    if not given["EventPattern"]:
        for name in ("EventRoom", "EventRoomPath"):
            if given[name]:
                raise DeployError(f"{name} is set without EventPattern, which says which events are published")
        return
    try:
        pattern = json.loads(given["EventPattern"])
    except ValueError as error:
        raise DeployError(f"EventPattern is not valid JSON: {error}") from None
    if not isinstance(pattern, dict) or not pattern:
        raise DeployError("""EventPattern must be an object with at least one field, such as {"source": ["orders"]}""")
    if not given["EventRoom"] and not given["EventRoomPath"]:
        raise DeployError("EventPattern needs a room: set EventRoom, EventRoomPath, or both")
    if values.get("Queue") == "fifo":
        raise DeployError("EventBridge reaches only a standard queue: remove EventPattern, or Queue")
    if given["EventRoomPath"]:
        _check_path(pattern, given["EventRoomPath"])


def _check_path(pattern: dict[str, Any], path: str) -> None:
    """Raise DeployError if the pattern matches events whose value at the path may contain quotes or backslashes."""
    keys = path.removeprefix("$.").split(".")
    values: Any = pattern
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    if isinstance(values, list) and values and all(map(_is_safe, values)):
        return
    missing: Any = [{"anything-but": {"wildcard": list(_UNSAFE_WILDCARDS)}}]
    for key in reversed(keys):
        missing = {key: missing}
    raise DeployError(
        "EventBridge does not escape the value at EventRoomPath: with quotes in it, it can set fields of the broadcast."
        f" Add this to EventPattern: {json.dumps(missing)}; or list the values there, without quotes and backslashes"
    )


def _is_safe(alternative: Any) -> bool:
    """Whether this part of a pattern matches only texts without quotes and backslashes."""
    match alternative:
        case str():
            return not {'"', "\\"} & set(alternative)
        case {"anything-but": {"wildcard": [*wildcards], **others}, **more}:
            return not others and not more and all(each in wildcards for each in _UNSAFE_WILDCARDS)
    return False


def _check_senders(values: Mapping[str, str]) -> None:
    """Raise DeployError unless Senders are the ARNs of topics and rules."""
    if not values.get("Senders"):
        return
    for sender in values["Senders"].split(","):
        if not _SENDER.fullmatch(sender.strip()):
            raise DeployError(
                f"Senders has {sender.strip()!r}: expected the ARN of an SNS topic or of an EventBridge rule, without"
                " wildcards; several are separated by commas"
            )


def _check_rates(values: Mapping[str, str], known: Mapping[str, Sequence[Parameter]]) -> None:
    """Raise DeployError unless RouteRates has a number for each route: CloudFormation's own error names neither."""
    default = next(each.default or "" for each in known["api"] if each.name == "RouteRates")
    rates = [rate.strip() for rate in values.get("RouteRates", default).split(",")]
    expected = len(default.split(","))
    if len(rates) != expected or not all(rate.isascii() and rate.isdigit() for rate in rates):
        raise DeployError(
            f"RouteRates has {len(rates)} values: expected {expected} whole numbers, for the routes in the order that"
            " deploy/ecs/api.yaml describes; a release may add routes"
        )
