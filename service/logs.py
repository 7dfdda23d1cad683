"""Structured logs: readable lines on a terminal, JSON objects elsewhere."""

import logging
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

import structlog

from service.keys import SECRET


def configure() -> None:
    """Set up structlog for this process; every line carries the id of its request."""
    terminal = sys.stderr.isatty()
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if terminal
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if terminal else [structlog.processors.format_exc_info]),
            _redact,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def _redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Keep of every key what may be shown; a value that is no text is looked through as well."""
    return {name: _without_keys(value) for name, value in event.items()}


def _without_keys(value: Any) -> Any:
    match value:
        case str():
            return SECRET.sub(r"gw-\1-…", value)
        case dict():
            return {_without_keys(name): _without_keys(item) for name, item in value.items()}
        case list() | tuple():
            return [_without_keys(item) for item in value]
    return value
