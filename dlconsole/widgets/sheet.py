"""The widget that every part of the screens is: a few lines, of which only what changed is repainted.

Textual repaints whole widgets: one changed cell of a DataTable costs the whole table, in time and in
bytes. A `Sheet` draws its visible lines as plain tuples, compares them with what it shows, and marks
only the spans that differ; an unchanged picture writes nothing at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region, Size
from textual.strip import Strip
from textual.widget import Widget

from dlconsole.widgets.tones import TONES


class Piece(NamedTuple):
    """Text in one of the TONES. `click` is the action that a click on it runs, such as `app.help`; `under` is
    a second tone that gives the background, such as the cursor's.
    """

    text: str
    tone: str = "plain"
    click: str = ""
    under: str = ""


Line = tuple[Piece, ...]


class Sheet(Widget):
    """Lines of pieces. Subclasses draw; whoever changes what is drawn calls `redraw`."""

    ALLOW_SELECT = False

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002  (Textual's own word)
        super().__init__(id=id)
        self._lines: list[Line] = []
        self._drawn_size: Size | None = None

    def draw(self, width: int, height: int) -> Sequence[Line]:
        """The lines for an area of `width` by `height` cells. Called only with both above 0."""
        raise NotImplementedError

    def redraw(self) -> None:
        """Compare what should be shown with what is, and repaint the difference."""
        if self._drawn_size is None or self._drawn_size != self.content_size:
            self.refresh()
            return
        old = self._lines
        self._lines = list(self.draw(*self._drawn_size)) if self._drawn_size else []
        regions = list(changed_regions(old, self._lines, self._drawn_size.width))
        if regions:
            self.refresh(*regions)

    def render_line(self, y: int) -> Strip:
        """One line of the content area, as Textual asks for it."""
        size = self.content_size
        if self._drawn_size != size:
            self._lines = list(self.draw(*size)) if size else []
            self._drawn_size = size
        base = self.rich_style
        line = self._lines[y] if y < len(self._lines) else ()
        segments = [Segment(piece.text, self._style(piece, base)) for piece in line if piece.text]
        return Strip(segments).adjust_cell_length(size.width, base)

    @staticmethod
    def _style(piece: Piece, base: Style) -> Style:
        style = base + TONES[piece.under] if piece.under else base
        style += TONES[piece.tone]
        return style + Style.from_meta({"@click": piece.click}) if piece.click else style


def changed_regions(old: Sequence[Line], new: Sequence[Line], width: int) -> Iterable[Region]:
    """Where two drawings differ: for each changed line, the span from the first changed piece to the
    last one.
    """
    for y in range(max(len(old), len(new))):
        before = old[y] if y < len(old) else ()
        after = new[y] if y < len(new) else ()
        if before == after:
            continue
        start = _common_width(before, after)
        end = _common_width(before[::-1], after[::-1])
        # Only when both are equally wide does what they have in common at the end stand in one place.
        stop = _width(after) - end if _width(before) == _width(after) else width
        yield Region(start, y, max(1, stop - start), 1)


def _common_width(one: Line, other: Line) -> int:
    cells = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        cells += cell_len(a.text)
    return cells


def _width(line: Line) -> int:
    return sum(cell_len(piece.text) for piece in line)


def spread(left: Iterable[Piece], right: Iterable[Piece], width: int) -> Line:
    """`left` at the left edge and `right` at the right one; `right` goes when there is no room."""
    left, right = tuple(left), tuple(right)
    gap = width - _width(left) - _width(right)
    return (*left, Piece(" " * gap), *right) if gap >= 1 else left
