"""An emulator of API Gateway's WebSocket APIs, for tests and local use. It is independent of Gatecast.

    async with Gateway({"$connect": Route(connect), "send": Route(send, response=True)}) as gateway:
        gateway.url       # for clients
        gateway.endpoint  # for the SDK's apigatewaymanagementapi client

`python -m gatecast.emulator` serves what a file describes; `gatecast.emulator.testing` and a plugin of pytest are for
tests that are not asynchronous. It needs `gatecast[emulator]`, and imports nothing of it before a name is used.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from gatecast.emulator.authorizer import Authorizer
    from gatecast.emulator.clock import Clock
    from gatecast.emulator.command import run
    from gatecast.emulator.config import Config, ConfigurationError, read_config
    from gatecast.emulator.faults import (
        GONE,
        INTERNAL_ERROR,
        NOT_JSON,
        THROTTLED,
        TRUNCATED_RESPONSE,
        UNAVAILABLE,
        CannedResponse,
        Delay,
        Faults,
        LostDisconnect,
        Reset,
        Rule,
        Stall,
    )
    from gatecast.emulator.integration import Mock, Route
    from gatecast.emulator.limits import Limits
    from gatecast.emulator.remote import HttpProxy, LambdaFunction
    from gatecast.emulator.server import Gateway
    from gatecast.emulator.sigv4 import Credentials
    from gatecast.emulator.template import read_template
    from gatecast.emulator.testing import Client, WebSocketApi

_MODULES: Final = {
    "authorizer": ("Authorizer",),
    "clock": ("Clock",),
    "command": ("run",),
    "config": ("Config", "ConfigurationError", "read_config"),
    "faults": (
        "GONE", "INTERNAL_ERROR", "NOT_JSON", "THROTTLED", "TRUNCATED_RESPONSE", "UNAVAILABLE",
        "CannedResponse", "Delay", "Faults", "LostDisconnect", "Reset", "Rule", "Stall",
    ),
    "integration": ("Mock", "Route"),
    "limits": ("Limits",),
    "remote": ("HttpProxy", "LambdaFunction"),
    "server": ("Gateway",),
    "sigv4": ("Credentials",),
    "template": ("read_template",),
    "testing": ("Client", "WebSocketApi"),
}  # fmt: skip
_EXTRA: Final = ("aiohttp", "msgspec", "yaml")

__all__ = [
    "GONE", "INTERNAL_ERROR", "NOT_JSON", "THROTTLED", "TRUNCATED_RESPONSE", "UNAVAILABLE", "Authorizer",
    "CannedResponse", "Client", "Clock", "Config", "ConfigurationError", "Credentials", "Delay", "Faults", "Gateway",
    "HttpProxy", "LambdaFunction", "Limits", "LostDisconnect", "Mock", "Reset", "Route", "Rule", "Stall",
    "WebSocketApi", "main", "read_config", "read_template", "run",
]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `python -m gatecast.emulator`. The exit code: 0 stopped, 1 it cannot run, 2 wrong configuration."""
    try:
        command = import_module("gatecast.emulator.command")
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        sys.stderr.write(f"{error.name} is missing: the emulator needs the extra gatecast[emulator]\n")
        return 1
    code: int = command.main(arguments)
    return code


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return globals().setdefault(name, getattr(import_module(f"gatecast.emulator.{module}"), name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
