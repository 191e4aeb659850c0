"""Logs: one event per line, with keys; JSON for machines, or coloured text for people. No payloads or credentials."""

import io
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final, TextIO

import msgspec
import structlog
from structlog.typing import ExcInfo

from gatecast.printable import printable
from worker.settings import LogFormat, LogLevel

_SDK: Final = ("aioboto3", "aiobotocore", "boto3", "botocore", "s3transfer", "urllib3")
"""Loggers that write bodies, tokens and what signatures are made of when their level is debug."""

broadcast_id: Final[ContextVar[str]] = ContextVar("broadcast_id", default="")
"""Set while a broadcast is processed: each line logged in its context has it as `id`."""


def configure(level: LogLevel, log_format: LogFormat) -> None:
    """Call once, before the first log event. Libraries that use `logging` log from warnings on, in the same format."""
    processors: list[Any]
    logger_factory: Any
    renderer: Any
    if log_format == "json":
        processors = [_stamp, structlog.processors.format_exc_info]
        # One line is written per broadcast: the standard library's encoder would cost twice as much.
        logger_factory = structlog.BytesLoggerFactory(file=sys.stdout.buffer)
        renderer = structlog.processors.JSONRenderer(serializer=_json)
    else:
        processors = [_stamp, _make_printable]
        logger_factory = structlog.WriteLoggerFactory(file=sys.stdout)
        renderer = structlog.dev.ConsoleRenderer(
            pad_event_to=28, exception_formatter=_plain_traceback, colors=sys.stdout.isatty()
        )
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=logger_factory,
        cache_logger_on_first_use=True,
    )
    text: list[Any] = [lambda _logger, _method, line: line.decode()] if log_format == "json" else []
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=processors,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer, *text],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in _SDK:
        logging.getLogger(name).setLevel(logging.WARNING)  # of its own: the root's level must not decide this


def _stamp(_logger: Any, method: str, event: dict[str, Any]) -> dict[str, Any]:
    if current := broadcast_id.get():
        event.setdefault("id", current)
    event["level"] = "error" if method == "exception" else method
    event["timestamp"] = f"{datetime.now(UTC).replace(tzinfo=None).isoformat()}Z"
    return event


def _make_printable(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    """Ids and reasons come from messages, and must not control the terminal. In JSON they are escaped anyway."""
    return {name: value if name == "exc_info" else _printable_value(value) for name, value in event.items()}


def _printable_value(value: Any) -> Any:
    match value:
        case str():
            return printable(value)
        case list() | tuple():
            return [_printable_value(each) for each in value]
    return value


def _plain_traceback(output: TextIO, exc_info: ExcInfo) -> None:
    """Plain, because pretty tracebacks show local variables, and so payloads and credentials."""
    plain = io.StringIO()
    structlog.dev.plain_traceback(plain, exc_info)
    # indented, so that no line of an error's message looks like an event
    output.write("\n".join(f"  {printable(line)}" for line in plain.getvalue().split("\n")))


def _json(event: dict[str, Any], **_: Any) -> bytes:
    return msgspec.json.encode(event, enc_hook=repr)
