"""Waiting out a Redis that is away: pauses that grow, with jitter, until it is back or the user stops."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

from dlconsole.errors import RedisUnavailable

FIRST_S: Final = 0.2
LONGEST_S: Final = 10.0

P = ParamSpec("P")
T = TypeVar("T")


class Patience:
    """Repeats calls that may be repeated. `say` is told when waiting begins, and when it is over."""

    def __init__(self, stop: threading.Event, say: Callable[[str], None]) -> None:
        self._stop = stop
        self._say = say

    def call(self, action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The action's result, however long Redis is away; raises RedisUnavailable once `stop` is set."""
        pause_s = FIRST_S
        waited = False
        while True:
            try:
                result = action(*args, **kwargs)
            except RedisUnavailable as trouble:
                if not waited:
                    self._say(f"{trouble}; waiting for it")
                waited = True
                if self._stop.wait(pause_s * random.uniform(0.5, 1.0)):  # noqa: S311
                    raise
                pause_s = min(pause_s * 2, LONGEST_S)
            else:
                if waited:
                    self._say("Redis is back")
                return result
