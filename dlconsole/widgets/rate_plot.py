"""Images per second over the last hours, as columns of block characters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Final

from dlconsole.model import FleetSnapshot, HistoryPoint
from dlconsole.units import format_duration, format_short
from dlconsole.widgets.rates import Window, round_up, stored_rates, window_for
from dlconsole.widgets.sheet import Line, Piece, Sheet, spread
from dlconsole.widgets.text import UNKNOWN, fit
from dlconsole.widgets.tones import SHADES

_BLOCKS: Final = " ▁▂▃▄▅▆▇█"
_AXIS_WIDTH: Final = 7
_LABEL_WIDTH: Final = 14
"""Cells that each label of the time axis is given; where that is too much there are fewer labels."""


class RatePlot(Sheet):
    """A title with the present and the highest speed, the columns, and a time axis."""

    def __init__(self) -> None:
        super().__init__(id="plot")
        self._points: tuple[HistoryPoint, ...] = ()
        self._at_ms = 0
        self._now_per_s: float | None = None

    def show_snapshot(self, snapshot: FleetSnapshot) -> None:
        """Take over the history of a new picture; its own counters are the newest point."""
        points = snapshot.history
        if points and points[-1].at_ms < snapshot.at_ms:
            counts = snapshot.counts
            points = (
                *points,
                HistoryPoint(snapshot.at_ms, counts.stored, counts.failed, counts.queued),
            )
        self._points = points
        self._at_ms = snapshot.at_ms
        self._now_per_s = snapshot.rates.stored_per_s
        self.redraw()

    def draw(self, width: int, height: int) -> Sequence[Line]:
        """Title, `height - 2` rows of columns, time axis."""
        columns, rows = width - _AXIS_WIDTH - 1, height - 2
        if columns < 8 or rows < 1:
            return []
        window = window_for(self._points, self._at_ms)
        rates = stored_rates(self._points, self._at_ms, window.ms, columns)
        known = [rate for rate in rates if rate is not None]
        top = round_up(max(known, default=0.0))
        title = self._title(width, known, window)
        if not known:
            return [title]
        return [title, *_rows(rates, top, rows), _time_axis(window, columns)]

    def _title(self, width: int, known: Sequence[float], window: Window) -> Line:
        left = [Piece(" IMAGES/S", "dim")]
        if not known:
            return spread(left, [Piece("no history yet: it grows by a point every 10 s ", "dim")], width)
        now_per_s = self._now_per_s
        now = UNKNOWN if now_per_s is None else format_short(now_per_s)
        peak = max(*known, now_per_s or 0.0)
        right = [
            Piece("now ", "dim"),
            Piece(now, "strong"),
            Piece("  peak ", "dim"),
            Piece(format_short(peak), "strong"),
            Piece(f"  last {format_duration(window.ms / 1000)} ", "dim"),
        ]
        return spread(left, right, width)


def _rows(rates: Sequence[float | None], top: float, rows: int) -> list[Line]:
    eighths = [_eighths(rate or 0.0, top, rows) for rate in rates]
    lines: list[Line] = []
    for row in range(rows):
        floor = 8 * (rows - 1 - row)
        cells = [_BLOCKS[min(8, max(0, height - floor))] for height in eighths]
        lines.append((_axis_label(row, rows, top), *_runs(cells, 1 - (row + 0.5) / rows)))
    return lines


def _runs(cells: Iterable[str], height: float) -> Iterable[Piece]:
    """One row; the higher it stands, the brighter. Full cells have a tone of their own, which fills
    the cell also where a font leaves gaps between the lines.
    """
    shade = int(height * len(SHADES))
    for full, run in groupby(cells, lambda cell: cell == _BLOCKS[8]):
        yield Piece("".join(run), f"{'full' if full else 'plot'}-{shade}")


def _eighths(rate: float, top: float, rows: int) -> int:
    """How high a column stands; the least speed above nothing shows."""
    return max(1, min(8 * rows, round(rate / top * 8 * rows))) if rate > 0 else 0


def _axis_label(row: int, rows: int, top: float) -> Piece:
    """The highest value beside the first row; half of it beside the row that starts at it."""
    value = top if row == 0 else top / 2 if rows % 2 == 0 and row == rows // 2 else None
    label = "" if value is None else format_short(value)
    return Piece(fit(label, _AXIS_WIDTH - 2, right=True) + (" ┤" if label else " │"), "dim")


def _time_axis(window: Window, columns: int) -> Line:
    """How long ago, at even distances; `now` at the right edge."""
    line = list(" " * (_AXIS_WIDTH + columns))
    parts = window.parts if columns >= window.parts * _LABEL_WIDTH else 1
    for part in range(parts):
        label = f"-{format_duration(window.ms * (parts - part) / parts / 1000)}"
        start = _AXIS_WIDTH + columns * part // parts
        line[start : start + len(label)] = label
    line[-3:] = "now"
    return (Piece("".join(line), "dim"),)
