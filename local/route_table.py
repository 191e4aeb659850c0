"""Gatecast's routes and authorizer for the gateway. Importing this module imports the Lambda handlers."""

from collections.abc import Mapping
from typing import Final

from local.gateway.authorizer import Authorizer
from local.gateway.integration import Route
from routes import authorizer, handlers

ROUTES: Final[Mapping[str, Route]] = {
    "$connect": Route(handlers.connect),
    "$disconnect": Route(handlers.disconnect),
    "$default": Route(handlers.default, response=True),
    "join": Route(handlers.join, response=True),
    "leave": Route(handlers.leave, response=True),
    "publish": Route(handlers.publish, response=True),
}
AUTHORIZER: Final = Authorizer(authorizer.handler)
