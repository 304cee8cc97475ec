"""What the units' tests share."""

from __future__ import annotations


class Clock:
    """A clock of the test's own, in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now
