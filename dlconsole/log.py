"""Logs: one event a line, text on a terminal, JSON Lines elsewhere; passwords never get in.

Written here because a library for it loads what nobody needs, for longer than all else takes to start.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from dlconsole.settings import LogSettings

_PASSWORD: Final = re.compile(r"(\w+://[^\s:/@]*:)[^\s@]+@")
_LEVELS: Final = ("debug", "info", "warning", "error", "critical")
_COLOURS: Final = {"debug": "32", "info": "32", "warning": "33", "error": "31", "critical": "31"}
"""SGR parameters (ECMA-48, 8.3.117)."""
_TO_BE_QUOTED: Final = re.compile(r"[\s=\"']")


class Logger:
    """Writes events of a level and above. Any thread may; each event is one `write`."""

    def __init__(self, output: _Forgiving, level: str, render: _Render, context: Mapping[str, Any]) -> None:
        self._output = output
        self._least = _LEVELS.index(level)
        self._render = render
        self._context = dict(context)
        self._lock = threading.Lock()

    def debug(self, event: str, **fields: Any) -> None:
        """What only whoever looks for a fault wants to see."""
        self._log("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """What goes as it should."""
        self._log("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """What somebody may want to see to."""
        self._log("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """What went wrong; a field `exception` is a stack trace."""
        self._log("error", event, fields)

    def critical(self, event: str, **fields: Any) -> None:
        """What ends a worker."""
        self._log("critical", event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """What went wrong, with the stack trace of the exception that is being handled."""
        self._log("error", event, fields | {"exception": traceback.format_exc().rstrip()})

    def _log(self, level: str, event: str, fields: Mapping[str, Any]) -> None:
        if _LEVELS.index(level) < self._least:
            return
        at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        shown = {**self._context, **fields, "event": event, "level": level, "timestamp": at}
        for key, value in shown.items():
            if isinstance(value, str) and "://" in value:
                shown[key] = _PASSWORD.sub(r"\1***@", value)
        with self._lock:
            self._output.write(self._render(shown) + "\n")
            self._output.flush()


_Render = Callable[[dict[str, Any]], str]


def configure(settings: LogSettings, stream: TextIO | None = None, **context: Any) -> Logger:
    """A logger that writes to `stream` (stderr); `context` goes into every line."""
    output = _Forgiving(stream or sys.stderr)
    as_json = settings.format == "json" or (settings.format == "auto" and not output.isatty())
    render: _Render = _as_json if as_json else _coloured if output.isatty() else _as_text
    return Logger(output, settings.level, render, context)


def _as_json(fields: dict[str, Any]) -> str:
    return json.dumps(fields, default=repr)


def _as_text(fields: dict[str, Any], paint: Callable[[str, str], str] = lambda _sgr, text: text) -> str:
    at, level, event = (fields.pop(name) for name in ("timestamp", "level", "event"))
    trace = fields.pop("exception", "")
    shown = (f"{paint('36', key)}={paint('35', _quoted(value))}" for key, value in fields.items())
    line = " ".join([paint("2", at), f"[{paint(_COLOURS[level], f'{level:<8}')}]", paint("1", event), *shown])
    return f"{line}\n{trace}" if trace else line


def _coloured(fields: dict[str, Any]) -> str:
    return _as_text(fields, lambda sgr, text: f"\x1b[{sgr}m{text}\x1b[0m")


def _quoted(value: object) -> str:
    return value if isinstance(value, str) and not _TO_BE_QUOTED.search(value) else repr(value)


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
