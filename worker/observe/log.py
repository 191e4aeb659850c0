"""Logs: one event per line, with keys; JSON for machines, or coloured text for people. No payloads or credentials."""

import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import structlog

from worker.settings import LogFormat, LogLevel

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
        processors = [_stamp]
        logger_factory = structlog.WriteLoggerFactory(file=sys.stdout)
        # Plain, because pretty tracebacks show local variables, and so payloads and credentials.
        renderer = structlog.dev.ConsoleRenderer(
            pad_event_to=28, exception_formatter=structlog.dev.plain_traceback, colors=sys.stdout.isatty()
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


def _stamp(_logger: Any, method: str, event: dict[str, Any]) -> dict[str, Any]:
    if current := broadcast_id.get():
        event.setdefault("id", current)
    event["level"] = "error" if method == "exception" else method
    event["timestamp"] = f"{datetime.now(UTC).replace(tzinfo=None).isoformat()}Z"
    return event


def _json(event: dict[str, Any], **_: Any) -> bytes:
    return msgspec.json.encode(event, enc_hook=repr)
