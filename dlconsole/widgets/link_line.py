"""The line that says how fresh the picture is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from textual.timer import Timer

from dlconsole.model import FleetSnapshot
from dlconsole.picture import LinkState, Picture
from dlconsole.units import format_count, format_duration
from dlconsole.widgets.sheet import Line, Piece, Sheet, spread
from dlconsole.widgets.text import clean, fit

_TICK_S: Final = 1.0


class LinkLine(Sheet):
    """Connected, or since when not, why, and when the next try is due.

    Its clock runs only while the connection is lost: a live console has nothing that ticks.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__()
        self._now = now
        self._picture: Picture | None = None
        self._clock: Timer | None = None

    def on_mount(self) -> None:
        """Make the clock, stopped."""
        self._clock = self.set_interval(_TICK_S, self.redraw, pause=True)

    def show_picture(self, picture: Picture) -> None:
        """Take over the state of the connection."""
        self._picture = picture
        if self._clock is not None:
            if picture.link.state is LinkState.LOST:
                self._clock.resume()
            else:
                self._clock.pause()
        self.redraw()

    def draw(self, width: int, height: int) -> Sequence[Line]:
        """One line: the state to the left, the refresh interval to the right."""
        del height
        picture = self._picture
        if picture is None:
            return []
        right = [Piece(f"refresh {format_interval(picture.refresh_s)} ", "dim")]
        left = [Piece(" ")]
        if picture.frozen:
            left += [Piece(" FROZEN ", "badge"), Piece(" Space goes on  " if width >= 60 else " ", "dim")]
        if picture.link.state is LinkState.LOST:
            return [self._lost(left, picture, width)]
        if picture.link.state is LinkState.CONNECTING:
            left += [Piece("○ connecting", "accent")]
        else:
            left += [Piece("● live", "good")]
        facts = [] if picture.snapshot is None else _facts(picture.snapshot)
        room = width - sum(len(piece.text) for piece in (*left, *right)) - 1
        for fact in facts:
            room -= len(fact) + 2
            if room >= 0:
                left.append(Piece(f"  {fact}", "dim"))
        return [spread(left, right, width)]

    def _lost(self, left: list[Piece], picture: Picture, width: int) -> Line:
        link, now = picture.link, self._now()
        stale = format_duration(now - link.since_s)
        if link.next_try_s is None:
            trying = "trying"
        else:
            trying = f"next try in {format_duration(math.ceil(max(0.0, link.next_try_s - now)))}"
        state = f"no connection for {stale}" if picture.snapshot is None else f"stale {stale}"
        line = [*left, Piece(f"✕ {state}, {trying}", "bad")]
        room = width - sum(len(piece.text) for piece in line) - 3
        if room >= 8:
            line.append(Piece("  " + fit(clean(link.reason), room).rstrip(), "dim"))
        return tuple(line)


def _facts(snapshot: FleetSnapshot) -> list[str]:
    """What a glance may want to know of the fleet and its Redis, the most telling first."""
    alive = sum(session.alive for session in snapshot.sessions)
    facts = [_plural(len(snapshot.hosts), "host"), _plural(alive, "session")]
    return [*facts, f"Redis {clean(snapshot.redis.version)}"] if snapshot.redis.version else facts


def format_interval(seconds: float) -> str:
    """A refresh interval: 0.5 → '0.5 s', 2 → '2 s', 60 → '1 m'."""
    return f"{seconds:g} s" if seconds < 60 else format_duration(seconds)


def _plural(count: int, noun: str) -> str:
    return f"{format_count(count)} {noun}" + ("" if count == 1 else "s")
