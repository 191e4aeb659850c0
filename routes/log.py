"""The log of everything in here: JSON, one line an event, with keys. Nothing that a client sent stands in it."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from aws_lambda_powertools import Logger
from botocore.exceptions import ClientError

from routes.answers import Refused
from routes.environment import ConfigurationError

Handler = Callable[[dict[str, Any], Any], dict[str, Any]]

_HERE: Final = Path(__file__).parent
logger: Final = Logger(service="gatecast-routes")


def lambda_handler(handler: Handler) -> Handler:
    """Adds the ids of the function and of the request to the lines of a handler."""
    # said here, because an environment variable can switch it on: an event holds what clients sent, tokens included
    injected: Handler = logger.inject_lambda_context(handler, log_event=False)
    return injected


def log_failure(event: str, error: Exception, **details: str) -> None:
    """One line that tells what failed and where, without the messages of others, which may quote what was sent."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).parent == _HERE]
    where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
    details |= {"error": type(error).__name__, "where": where}
    match error:
        case ClientError():
            details |= {"code": error.response["Error"]["Code"], "operation": error.operation_name}
        case Refused() | ConfigurationError():
            details["reason"] = str(error)
    logger.error(event, extra=details)
