"""Waiting out a Redis that is away: pauses that grow, with jitter, until it is back or the user stops."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

from dlconsole.errors import RedisUnavailable

FIRST_S: Final = 0.2
LONGEST_S: Final = 5.0
_ASK_EVERY_S: Final = 0.1

P = ParamSpec("P")
T = TypeVar("T")


class Patience:
    """Repeats calls that may be repeated. `say` is told when waiting begins, and when it is over; `wait`
    waits so many seconds, and returns True at once where it is to end: an Event's `wait`, or `wait_while`.
    """

    def __init__(self, wait: Callable[[float], bool], say: Callable[[str], None]) -> None:
        self.waiting = ""
        """What is wrong with Redis, while that is waited out."""
        self._wait = wait
        self._say = say
        self._pause_s = FIRST_S

    def call(self, action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The action's result, however long Redis is away; raises RedisUnavailable where it is to end."""
        while True:
            try:
                result = action(*args, **kwargs)
            except RedisUnavailable as trouble:
                if self.pause(trouble):
                    raise
            else:
                self.over()
                return result

    def pause(self, trouble: RedisUnavailable) -> bool:
        """Wait, each time longer until it is `over`; whether to end instead of trying again."""
        if not self.waiting:
            self._say(f"{str(trouble).rstrip('.')}; waiting for it (Ctrl-C stops)")
        self.waiting = str(trouble)
        pause_s, self._pause_s = self._pause_s, min(self._pause_s * 2, LONGEST_S)
        return self._wait(pause_s * random.uniform(0.5, 1.0))  # noqa: S311

    def over(self) -> None:
        """Redis does its work."""
        if self.waiting:
            self._say("Redis is back")
        self.waiting, self._pause_s = "", FIRST_S


def wait_while(goes_on: Callable[[], bool]) -> Callable[[float], bool]:
    """A `wait` for somebody who is asked whether it goes on, again and again."""

    def wait(seconds: float) -> bool:
        until = time.monotonic() + seconds
        while goes_on():
            left_s = until - time.monotonic()
            if left_s <= 0:
                return False
            time.sleep(min(_ASK_EVERY_S, left_s))
        return True

    return wait
