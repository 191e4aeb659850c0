"""Gatecast's routes and authorizer for the gateway. Importing this module imports the Lambda handlers."""

from collections.abc import Mapping
from typing import Final

from gatecast.emulator.authorizer import Authorizer
from gatecast.emulator.integration import Mock, Route
from routes import authorizer, handlers

PING: Final = Mock({"type": "pong"}, repeats=("ref",))
"""As the templates make it, unless `PingFunction` is yes: no function is invoked."""
ROUTES: Final[Mapping[str, Route]] = {
    "$connect": Route(handlers.connect),
    "$disconnect": Route(handlers.disconnect),
    "$default": Route(handlers.default, response=True),
    "join": Route(handlers.join, response=True),
    "leave": Route(handlers.leave, response=True),
    "publish": Route(handlers.publish, response=True),
    "history": Route(handlers.history, response=True),
    "members": Route(handlers.members, response=True),
    "count": Route(handlers.count, response=True),
    "ping": Route(PING, response=True),
}
AUTHORIZER: Final = Authorizer(authorizer.handler)
