"""Logs: one event a line, text on a terminal, JSON Lines elsewhere; passwords never get in."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Final, TextIO, cast

import structlog

from dlconsole.settings import LogSettings

_PASSWORD: Final = re.compile(r"(\w+://[^\s:/@]*:)[^\s@]+@")

Logger = structlog.typing.FilteringBoundLogger


def configure(settings: LogSettings, stream: TextIO | None = None, **context: Any) -> Logger:
    """Set up logging to `stream` (stderr); `context` goes into every line."""
    output = _Forgiving(stream or sys.stderr)
    as_json = settings.format == "json" or (settings.format == "auto" and not output.isatty())
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(colors=output.isatty(), pad_event_to=0)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _hide_passwords,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.level.upper())),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", output)),
        cache_logger_on_first_use=False,
    )
    logger: Logger = structlog.get_logger(**context)
    return logger


class _Forgiving:
    """A stream whose reader may go: a closed pipe or a full disk costs log lines, never a worker."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            pass

    def isatty(self) -> bool:
        return self._stream.isatty()


def _hide_passwords(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if isinstance(value, str) and "://" in value:
            event[key] = _PASSWORD.sub(r"\1***@", value)
    return event
