"""Logs: one event a line, with keys; JSON for machines, or coloured text for people. Never payloads or credentials."""

import logging
import sys
from typing import Any

import msgspec
import structlog

from worker.settings import LogFormat, LogLevel


def configure(level: LogLevel, log_format: LogFormat) -> None:
    """Once, before anything is logged. Libraries that use `logging` are heard from warnings on, in the same form."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Any
    if log_format == "json":
        shared.append(structlog.processors.format_exc_info)
        renderer = structlog.processors.JSONRenderer(serializer=_json)
    else:
        # Plain: the pretty tracebacks show local variables, and so payloads and credentials.
        renderer = structlog.dev.ConsoleRenderer(
            pad_event_to=28, exception_formatter=structlog.dev.plain_traceback, colors=sys.stdout.isatty()
        )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stdout),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


def _json(event: dict[str, Any], **_: Any) -> str:
    """One line a broadcast is written: with the standard library's encoder that costs twice as much."""
    return msgspec.json.encode(event, enc_hook=repr).decode()
