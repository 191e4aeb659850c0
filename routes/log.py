"""Structured logging of the routes: one JSON line per event. Nothing that a client sent is logged."""

import logging
import traceback
from collections.abc import Callable
from functools import wraps
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from aws_lambda_powertools import Logger
from botocore.exceptions import ClientError

import gatecast.rooms
from gatecast.rooms.errors import NoPublisher
from routes.access import InvalidContext
from routes.environment import ConfigurationError
from routes.metrics import record_ignored_event
from routes.responses import RequestRejected

Handler = Callable[[dict[str, Any], Any], dict[str, Any]]

_SDK: Final = ("boto3", "botocore", "s3transfer", "urllib3")
"""Loggers that write bodies, tokens and what signatures are made of when their level is debug."""
_OURS: Final = (Path(__file__).parent, Path(gatecast.rooms.__file__).parent)
"""The folders whose lines are named as the place of a failure."""
logger: Final = Logger(service="gatecast-routes")
for _name in _SDK:
    logging.getLogger(_name).setLevel(logging.INFO)  # of its own: the environment's level must not decide this


def lambda_handler(handler: Handler) -> Handler:
    """Ignores events that are not API Gateway's, and adds the function's and the request's ids to each logged line."""

    @wraps(handler)
    def handle(event: Any, context: Any) -> dict[str, Any]:
        if isinstance(event, dict) and isinstance(event.get("requestContext"), dict):
            return handler(event, context)
        record_ignored_event()
        logger.info("event.ignored", extra={"reason": "it has no requestContext, so it is not API Gateway's"})
        return {"statusCode": int(HTTPStatus.OK)}

    # explicit, because an environment variable could enable it: an event contains what clients sent, tokens included
    injected: Handler = logger.inject_lambda_context(handle, log_event=False)
    return injected


def log_failure(event: str, error: Exception, **details: str) -> None:
    """Logs one line with the error's class and place, but no third-party message: it may quote what a client sent."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if any(map(Path(frame.filename).is_relative_to, _OURS))]
    where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
    details |= {"error": type(error).__name__, "where": where}
    match error:
        case ClientError():
            details |= {"code": error.response["Error"]["Code"], "operation": error.operation_name}
        case RequestRejected() | NoPublisher() | ConfigurationError() | InvalidContext():
            details["reason"] = str(error)
    logger.error(event, extra=details)
