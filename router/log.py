"""Logging set-up: structlog, never on the token path, and never with a prompt, an answer or a secret in it."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from router.config import Log


def set_up(config: Log) -> Any:
    """Configure structlog for the process and return a logger; messages go to standard error."""
    console = config.format == "console" or (config.format == "auto" and sys.stderr.isatty())
    renderer = structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, config.level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    return structlog.get_logger("ringrouter")
