"""Logs: one event a line, with keys; JSON for machines, or coloured text for people. Never payloads or credentials."""

import logging
import sys
from typing import Any

import structlog

from worker.settings import LogFormat, LogLevel


def configure(level: LogLevel, log_format: LogFormat) -> None:
    """Once, before anything is logged. Libraries that use `logging` are heard from warnings on, in the same form."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer() if log_format == "json" else structlog.dev.ConsoleRenderer(pad_event_to=28)
    )
    if log_format == "console":
        shared.pop()  # it renders tracebacks itself, and better
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
