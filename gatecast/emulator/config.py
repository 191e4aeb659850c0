"""What one emulated API is made of, and how it is read from a TOML file.

Every error names the file, the table and the key, and says what is expected. Paths are relative to the file.
"""

import dataclasses
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from gatecast.emulator.authorizer import Authorizer, check_identity_source
from gatecast.emulator.browser_requests import LOOPBACK_ORIGINS, host_name
from gatecast.emulator.defaults import LOOPBACK, REGION
from gatecast.emulator.faults import NAMED, Fault, Rule
from gatecast.emulator.integration import Function, Integration, Mock, Route
from gatecast.emulator.limits import Limits
from gatecast.emulator.python_code import CodeFolder
from gatecast.emulator.remote import HttpProxy, LambdaFunction, check_parameter
from gatecast.emulator.selection import ACTION, Selection
from gatecast.emulator.sigv4 import Credentials

DEFAULT_PORT: Final = 8080
MAX_PORT: Final = 65_535
DEFAULT_STAGE: Final = "local"
ALL_ORIGINS: Final = "*"
_FUNCTIONS: Final = "python:module.function or lambda:NAME"
_EXPECTED: Final = "python:module.function, lambda:NAME, http://…, https://… or mock"
_FIELD: Final = re.compile(r"Object (contains unknown|missing required) field `([^`]+)`")


class ConfigurationError(Exception):
    """Something is missing or wrong in a file or an option; the message is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One API. `left_out` are lines about what a template has and the emulator does not.

    In the values of `environment`, `{endpoint}` and `{url}` stand for the API's own addresses. `folders` hold the
    Python handlers. An empty `base_path` is a URL without stage.
    """

    routes: Mapping[str, Route]
    authorizer: Authorizer | None = None
    selection: Selection = ACTION
    stage: str = DEFAULT_STAGE
    base_path: str | None = None
    host: str = LOOPBACK
    port: int = DEFAULT_PORT
    region: str = REGION
    credentials: Credentials | None = None
    limits: Limits = Limits()  # noqa: RUF009 - it is immutable
    faults: Sequence[Rule] = ()
    seed: int | None = None
    allowed_origins: Sequence[str] = LOOPBACK_ORIGINS
    allowed_hosts: Sequence[str] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    folders: Sequence[CodeFolder] = ()
    left_out: Sequence[str] = ()


class _Top(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The keys of the file; tables are read one by one."""

    routes: dict[str, Any] = {}
    authorizer: dict[str, Any] | None = None
    limits: dict[str, Any] = {}
    faults: list[Any] = []
    credentials: dict[str, Any] | None = None
    environment: dict[str, Any] = {}
    selection_expression: str | None = None
    stage: str | None = None
    base_path: str | None = None
    host: str | None = None
    port: int | None = None
    region: str | None = None
    invoke_endpoint: str | None = None
    python_path: str = "."
    seed: int | None = None
    allowed_origins: list[str] | None = None
    allowed_hosts: list[str] | None = None


class _Route(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    integration: str
    response: bool = False
    body: dict[str, Any] | None = None
    repeats: list[str] = []
    method: str | None = None
    parameters: dict[str, Any] = {}


class _Authorizer(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    integration: str
    identity_sources: list[str] = []


class _Credentials(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    access_key_id: str
    secret_access_key: str
    session_token: str | None = None


def read_config(path: Path, base: Config | None = None, *, invoke_endpoint: str | None = None) -> Config:
    """The API of a TOML file. `base` is what a template has; the file adds to its routes and replaces the rest.

    Nothing is imported yet: `CodeFolder.load` does it. `invoke_endpoint` takes precedence over the file's. Raises
    ConfigurationError.
    """
    return _Reader(path, invoke_endpoint).config(base or Config(routes={}))


class _Reader:
    def __init__(self, path: Path, invoke_endpoint: str | None) -> None:
        self._path = path
        self._top = self._convert(self._parsed(), _Top, "")
        self._endpoint = invoke_endpoint or self._top.invoke_endpoint
        self._folder: CodeFolder | None = None

    def config(self, base: Config) -> Config:
        top = self._top
        routes = {**base.routes, **{key: self._route(key, value) for key, value in top.routes.items()}}
        if not routes:
            raise self._error("routes", "", 'there are no routes: expected, for example, send = "python:chat.send"')
        if top.port is not None and not 0 <= top.port <= MAX_PORT:
            raise self._error("", "port", f"{top.port}: expected 0 (a free port) to {MAX_PORT}")
        given: dict[str, Any] = {
            "stage": top.stage,
            "base_path": top.base_path,
            "host": top.host,
            "port": top.port,
            "region": top.region,
            "seed": top.seed,
            "selection": self._selection(top.selection_expression),
            "authorizer": self._authorizer(top.authorizer),
            "credentials": self._credentials(top.credentials),
            "limits": self._limits(top.limits) if top.limits else None,
            "faults": [self._rule(number, each) for number, each in enumerate(top.faults, 1)] or None,
            "allowed_origins": self._origins(top.allowed_origins),
            "allowed_hosts": self._hosts(top.allowed_hosts),
        }
        return dataclasses.replace(
            base,
            routes=routes,
            environment={**base.environment, **self._texts(top.environment, "environment")},
            folders=[*base.folders, *([self._folder] if self._folder else [])],
            **{name: value for name, value in given.items() if value is not None},
        )

    def _route(self, key: str, value: Any) -> Route:
        if not isinstance(value, str | dict):
            raise self._error("routes", key, f"{value!r}: expected {_EXPECTED}, or a table with an integration")
        table = f"routes.{key}" if isinstance(value, dict) else "routes"
        given = self._convert({"integration": value} if isinstance(value, str) else value, _Route, table)
        name = "integration" if isinstance(value, dict) else key
        return Route(self._integration(given, table, name), given.response)

    def _integration(self, given: _Route, table: str, key: str) -> Integration:
        text = given.integration
        is_proxy = text.startswith(("http://", "https://"))
        for name, set_, fits in (
            ("body", given.body is not None, text == "mock"),
            ("repeats", bool(given.repeats), text == "mock"),
            ("method", given.method is not None, is_proxy),
            ("parameters", bool(given.parameters), is_proxy),
        ):
            if set_ and not fits:
                raise self._error(table, name, f"it has no effect on {text!r}: remove it")
        if text == "mock":
            return Mock(given.body or {}, tuple(given.repeats))
        if is_proxy:
            parameters = self._texts(given.parameters, f"{table}.parameters")
            for name, source in parameters.items():
                try:
                    check_parameter(name, source)
                except ValueError as error:
                    raise self._error(f"{table}.parameters", name, str(error)) from None
            return HttpProxy(text, given.method or "POST", parameters)
        return self._function(text, table, key, _EXPECTED)

    def _function(self, text: str, table: str, key: str, expected: str = _FUNCTIONS) -> Function:
        kind, colon, name = text.partition(":")
        if not colon or not name or kind not in {"python", "lambda"}:
            raise self._error(table, key, f"{text!r}: expected {expected}")
        if kind == "python":
            self._folder = self._folder or CodeFolder(self._path.parent / self._top.python_path)
            return self._folder.handler(name, str(self._error(table, key, "")).removesuffix(": "))
        if name.startswith(("http://", "https://")):
            try:
                return LambdaFunction.from_url(name)
            except ValueError as error:
                raise self._error(table, key, str(error)) from None
        if self._endpoint is None:
            raise self._error(
                table, key, f"{text!r} needs invoke_endpoint (or --invoke-endpoint), for example http://127.0.0.1:3001"
            )
        return LambdaFunction.at(self._endpoint, name)

    def _authorizer(self, value: dict[str, Any] | None) -> Authorizer | None:
        if value is None:
            return None
        given = self._convert(value, _Authorizer, "authorizer")
        for source in given.identity_sources:
            try:
                check_identity_source(source)
            except ValueError as error:
                raise self._error("authorizer", "identity_sources", str(error)) from None
        return Authorizer(self._function(given.integration, "authorizer", "integration"), tuple(given.identity_sources))

    def _selection(self, expression: str | None) -> Selection | None:
        try:
            return None if expression is None else Selection.parse(expression)
        except ValueError as error:
            raise self._error("", "selection_expression", str(error)) from None

    def _credentials(self, value: dict[str, Any] | None) -> Credentials | None:
        if value is None:
            return None
        given = self._convert(value, _Credentials, "credentials")
        return Credentials(given.access_key_id, given.secret_access_key, given.session_token)

    def _limits(self, value: dict[str, Any]) -> Limits:
        known = [field.name for field in dataclasses.fields(Limits)]
        if unknown := value.keys() - set(known):
            raise self._error("limits", min(unknown), f"unknown; there are {', '.join(known)}")
        without_throttle = {"requests_per_second": None} if value.get("requests_per_second") == 0 else {}
        limits: Limits = self._convert({**value, **without_throttle}, Limits, "limits")
        return limits

    def _rule(self, number: int, value: Any) -> Rule:
        table = f"faults, number {number}"
        fault = value.get("fault") if isinstance(value, dict) else None
        if isinstance(fault, str):
            if fault not in NAMED:
                raise self._error(table, "fault", f"{fault!r}: expected a table, or one of {', '.join(NAMED)}")
            value = {**value, "fault": msgspec.to_builtins(NAMED[fault])}
        elif fault is not None:
            self._convert(fault, Fault, f"{table}, fault")
        rule: Rule = self._convert(value, Rule, table)
        return rule

    def _texts(self, given: Mapping[str, Any], table: str) -> Mapping[str, str]:
        for name, value in given.items():
            if not isinstance(value, str):
                raise self._error(table, name, f"{value!r}: expected text, in quotes")
        return given

    def _origins(self, given: list[str] | None) -> Sequence[str] | None:
        return () if given == [ALL_ORIGINS] else given

    def _hosts(self, given: list[str] | None) -> Sequence[str] | None:
        for each in given or ():
            if host_name(each) != each.lower():
                raise self._error("", "allowed_hosts", f"{each!r}: expected a host's name or address, without a port")
        return given

    def _parsed(self) -> dict[str, Any]:
        try:
            return tomllib.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{self._path}: it cannot be read: {error}") from None
        except tomllib.TOMLDecodeError as error:
            raise ConfigurationError(f"{self._path}: it is not TOML: {error}") from None

    def _convert(self, value: Any, kind: Any, table: str) -> Any:
        try:
            return msgspec.convert(value, kind)
        except (msgspec.ValidationError, ValueError) as error:
            text, _, place = str(error).replace(" | null", "").partition(" - at `$")
            key = place.strip("`.")
            if found := _FIELD.fullmatch(text):
                text = "missing" if found[1] == "missing required" else f"unknown; there are {_names(kind)}"
                key = f"{key}.{found[2]}".strip(".")
            raise self._error(table, key, text) from None

    def _error(self, table: str, key: str, problem: str) -> ConfigurationError:
        place = ": ".join(each for each in (f"[{table}]" if table else "", key) if each)
        return ConfigurationError(f"{self._path}: {place}: {problem}" if place else f"{self._path}: {problem}")


def _names(kind: Any) -> str:
    """The keys of a table."""
    return ", ".join(kind.__struct_fields__) if hasattr(kind, "__struct_fields__") else "those of its kind"
