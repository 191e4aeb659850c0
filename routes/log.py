"""Structured logging of the routes: one JSON line per event. Nothing that a client sent is logged."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from aws_lambda_powertools import Logger
from botocore.exceptions import ClientError

from routes.access import InvalidContext
from routes.environment import ConfigurationError
from routes.responses import RequestRejected

Handler = Callable[[dict[str, Any], Any], dict[str, Any]]

_HERE: Final = Path(__file__).parent
logger: Final = Logger(service="gatecast-routes")


def lambda_handler(handler: Handler) -> Handler:
    """Adds the function's and the request's ids to the lines that a handler logs."""
    # explicit, because an environment variable could enable it: an event contains what clients sent, tokens included
    injected: Handler = logger.inject_lambda_context(handler, log_event=False)
    return injected


def log_failure(event: str, error: Exception, **details: str) -> None:
    """Logs one line with the error's class and place, but no third-party message: it may quote what a client sent."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).parent == _HERE]
    where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
    details |= {"error": type(error).__name__, "where": where}
    match error:
        case ClientError():
            details |= {"code": error.response["Error"]["Code"], "operation": error.operation_name}
        case RequestRejected() | ConfigurationError() | InvalidContext():
            details["reason"] = str(error)
    logger.error(event, extra=details)
