"""Structured logging on stderr: readable on a terminal, JSON elsewhere."""

from __future__ import annotations

import logging
import sys

import structlog

from processor.config import Settings


def configure_logging(settings: Settings) -> None:
    """Set structlog up for the process, once."""
    readable = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    # Rich's tracebacks show local variables, and with them keys.
    renderer: structlog.types.Processor = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if readable
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if readable else [structlog.processors.format_exc_info]),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(settings.log_level)),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
