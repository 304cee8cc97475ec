"""Faults of our own that one task brings to light: they end that task, and not the worker with all others.

Bodies and headers are hostile, and what reads them is meant to raise nothing. Where it does all the same,
whoever judges a task catches it, tells the log, and goes on.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Final

from dlconsole.log import Logger
from dlconsole.model import Failure, FailureKind

OnFault = Callable[[Exception, str], None]
"""Takes a fault, and what it was met with: a URL."""
_MAX_MESSAGE: Final = 300


def unnoticed(_error: Exception, _at: str) -> None:
    """For an engine that is used without a log."""


def failure_of(error: Exception) -> Failure:
    """What a task ends with that met with a fault."""
    return Failure(FailureKind.CRASHED, f"a fault of dlconsole's own: {error!r}"[:_MAX_MESSAGE])


class FaultLog:
    """Logs each fault once, with its traceback: a site may have a million such answers. An `OnFault`."""

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._known: set[tuple[type[Exception], str, int | None]] = set()

    def __call__(self, error: Exception, at: str) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        place = (type(error), frames[-1].filename, frames[-1].lineno) if frames else (type(error), "", 0)
        if place not in self._known:
            self._known.add(place)
            trace = "".join(traceback.format_exception(error)).rstrip()
            self._log.error("a fault of dlconsole's own; please report it", url=at, exception=trace)
