"""Where all tasks are and how fast they move: ten numbers, each under its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from dlconsole.model import FleetSnapshot
from dlconsole.units import format_bytes, format_count, format_duration, format_short
from dlconsole.widgets.bar import bar
from dlconsole.widgets.sheet import Line, Piece, Sheet
from dlconsole.widgets.text import UNKNOWN, fit

_COLUMNS: Final = 5
_NARROW: Final = 70
"""Below so many cells, two names with their numbers share a line."""
_COLLAPSED: Final = 0.5
"""A success rate below this is drawn as a warning."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A name and its number. `short` is the number for where `value` has no room."""

    name: str
    value: str
    short: str
    tone: str = "strong"
    share: float | None = None


def tiles_of(snapshot: FleetSnapshot) -> list[Tile]:
    """The ten numbers of a snapshot, in reading order."""
    counts, rates = snapshot.counts, snapshot.rates
    total = counts.done + counts.outstanding
    # Of the last seconds while tasks are being done; of everything once they are not.
    success = rates.success_ratio
    if success is None and counts.done:
        success = counts.stored / counts.done
    done = counts.done / total if total else None
    return [
        _count("QUEUED", counts.queued),
        _count("IN FLIGHT", counts.in_flight, "accent"),
        _count("RETRYING", counts.delayed, "warn"),
        _count("STORED", counts.stored, "good"),
        _count("FAILED", counts.failed, "bad"),
        _tile(
            "SUCCESS", success, _percent, "warn" if success is not None and success < _COLLAPSED else "strong"
        ),
        _tile("IMAGES/S", rates.stored_per_s, _rate),
        _tile("DATA/S", rates.bytes_per_s, format_bytes),
        _tile("TO FINISH", rates.finish_s, format_duration, short=_first_unit),
        Tile("DONE", _percent(done) if done is not None else UNKNOWN, "", share=done),
    ]


def _count(name: str, count: int, tone: str = "strong") -> Tile:
    return Tile(name, format_count(count), format_short(count), tone if count else "dim")


def _tile(
    name: str,
    value: float | None,
    words: Callable[[float], str],
    tone: str = "strong",
    short: Callable[[float], str] | None = None,
) -> Tile:
    if value is None:
        return Tile(name, UNKNOWN, UNKNOWN, "dim")
    return Tile(name, words(value), (short or words)(value), tone)


def _first_unit(seconds: float) -> str:
    """«3 d 4 h» as «3 d»."""
    return " ".join(format_duration(seconds).split()[:2])


def _percent(share: float) -> str:
    """Never «100.0 %» before it is all."""
    return f"{min(share, 0.999) if share < 1 else 1:.1%}".replace("%", " %")


def _rate(per_s: float) -> str:
    return format_count(round(per_s)) if per_s >= 10 else format_short(per_s)


class Counters(Sheet):
    """Five numbers a row where there is room, else two a line."""

    def __init__(self) -> None:
        super().__init__(id="counters")
        self._tiles: list[Tile] = []

    def show_snapshot(self, snapshot: FleetSnapshot) -> None:
        """Take over the numbers of a new picture."""
        self._tiles = tiles_of(snapshot)
        self.redraw()

    def draw(self, width: int, height: int) -> Sequence[Line]:
        """The tiles in reading order, with an empty line between the rows where `height` allows it."""
        if width < _NARROW:
            return [_pair(self._tiles[i : i + 2], width) for i in range(0, len(self._tiles), 2)]
        lines: list[Line] = []
        for start in range(0, len(self._tiles), _COLUMNS):
            row = self._tiles[start : start + _COLUMNS]
            if lines and height > 4:
                lines.append(())
            widths = _split(width, len(row))
            lines.append(tuple(Piece(fit(f" {t.name}", w), "dim") for t, w in zip(row, widths, strict=True)))
            values = (_value(tile, w) for tile, w in zip(row, widths, strict=True))
            lines.append(tuple(piece for pieces in values for piece in pieces))
        return lines


def _split(width: int, parts: int) -> list[int]:
    return [width * (i + 1) // parts - width * i // parts for i in range(parts)]


def _value(tile: Tile, width: int) -> list[Piece]:
    text = tile.value if len(tile.value) + 2 <= width else tile.short
    room = width - len(text) - 4
    if tile.share is None or room < 4:
        return [Piece(fit(f" {text}", width), tile.tone)]
    return [Piece(f" {text}  ", tile.tone), *bar(tile.share, room, "accent"), Piece("  ")]


def _pair(tiles: Sequence[Tile], width: int) -> Line:
    """`name value` twice in one line."""
    pieces: list[Piece] = []
    for tile, cells in zip(tiles, _split(width, 2), strict=False):
        name = fit(f" {tile.name}", min(11, cells))
        room = cells - len(name) - 1
        value = tile.value if len(tile.value) <= room else tile.short
        pieces += [Piece(name, "dim"), Piece(fit(value, room, right=True), tile.tone), Piece(" ")]
    return tuple(pieces)
