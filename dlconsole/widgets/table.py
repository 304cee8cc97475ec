"""A table of any length: it formats the rows that are visible, and repaints the cells that changed."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from rich.cells import cell_len
from textual import events
from textual.binding import BindingType

from dlconsole.actions import Scope
from dlconsole.widgets.sheet import Line, Piece, Sheet
from dlconsole.widgets.text import fit
from dlconsole.widgets.wiring import bindings_of

_GAP: Final = 2
_WHEEL_ROWS: Final = 3


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its heading, least width in cells, and the share of spare room it takes."""

    title: str
    width: int
    right: bool = False
    grow: int = 0
    most: int = 0


Cell = tuple[Piece, ...]


class Table(Sheet, can_focus=True):
    """Headings, rows, and a cursor that stays on its row when rows come and go.

    The first column always shows; the others move under `columns_left` and `columns_right` where the
    terminal is too narrow for all. Subclasses say what the rows are.
    """

    BINDINGS: ClassVar[list[BindingType]] = [*bindings_of(Scope.TABLE)]

    def __init__(self, columns: Sequence[Column], *, id: str) -> None:  # noqa: A002  (Textual's own word)
        super().__init__(id=id)
        self._columns = tuple(columns)
        self._cursor = 0
        self._top = 0
        self._first_column = 1

    # -- what a subclass says --------------------------------------------------------------

    def row_count(self) -> int:
        """How many rows there are."""
        raise NotImplementedError

    def row_key(self, row: int) -> Hashable:
        """What identifies the row while others come and go."""
        raise NotImplementedError

    def find_row(self, key: Hashable) -> int | None:
        """Where the row with this key is now."""
        raise NotImplementedError

    def cell(self, row: int, column: int, width: int) -> Cell:
        """What stands in a cell of `width` cells; anything narrower is padded."""
        raise NotImplementedError

    # -- drawing ---------------------------------------------------------------------------

    def draw(self, width: int, height: int) -> Sequence[Line]:
        """The headings and as many rows as there is room for."""
        self._keep_cursor_visible(height - 1)
        body = width - 1  # the last cell of each line is the scroll bar's
        shown, more = self._fitting(body)
        lines = [self._headings(shown, body, more=more)]
        count = self.row_count()
        visible = range(self._top, min(count, self._top + height - 1))
        lines += [self._row(row, shown, body) for row in visible]
        if count > height - 1:
            lines = [_with_thumb(line, y, height - 1, self._top, count) for y, line in enumerate(lines)]
        return lines

    def _fitting(self, width: int) -> tuple[list[tuple[int, int]], bool]:
        """The columns that fit, each with its width, and whether others are to their right."""
        last_start = self._last_start(width)
        self._first_column = max(1, min(self._first_column, last_start))
        indexes, used = [0], self._columns[0].width + 1
        for index in range(self._first_column, len(self._columns)):
            used += _GAP + self._columns[index].width
            if used > width:
                used -= _GAP + self._columns[index].width
                break
            indexes.append(index)
        return self._widened(indexes, width - used), indexes[-1] < len(self._columns) - 1

    def _last_start(self, width: int) -> int:
        """The least first column from which all others fit."""
        used = self._columns[0].width + 1
        start = len(self._columns)
        while start > 1 and used + _GAP + self._columns[start - 1].width <= width:
            start -= 1
            used += _GAP + self._columns[start].width
        return min(start, len(self._columns) - 1)

    def _widened(self, indexes: Sequence[int], spare: int) -> list[tuple[int, int]]:
        shares = sum(self._columns[index].grow for index in indexes)
        widths = []
        for index in indexes:
            column = self._columns[index]
            extra = spare * column.grow // shares if shares else 0
            widths.append((index, min(column.width + extra, column.most or column.width)))
        return widths

    def _headings(self, shown: Sequence[tuple[int, int]], width: int, *, more: bool) -> Line:
        """Arrows at the edges say that there are columns beyond."""
        words = (" " * _GAP).join(
            fit(self._columns[index].title, cells, right=self._columns[index].right) for index, cells in shown
        )
        left = Piece("◂" if self._first_column > 1 else " ", "accent")
        right = Piece("▸" if more else " ", "accent")
        return (left, Piece(fit(words, width - 1), "dim"), right)

    def _row(self, row: int, shown: Sequence[tuple[int, int]], width: int) -> Line:
        under = "cursor" if row == self._cursor and self.has_focus else ""
        pieces, used = [Piece(" ", under=under)], 1
        for place, (index, cells) in enumerate(shown):
            content = self.cell(row, index, cells)
            padding = " " * max(0, cells - sum(cell_len(piece.text) for piece in content))
            around = (padding, "") if self._columns[index].right else ("", padding)
            gap = " " * _GAP if place else ""
            pieces.append(Piece(gap + around[0], under=under))
            pieces += [piece._replace(under=under) for piece in content]
            pieces.append(Piece(around[1], under=under))
            used += len(gap) + cells
        pieces.append(Piece(" " * (width - used), under=under))
        return tuple(pieces)

    # -- moving ----------------------------------------------------------------------------

    @property
    def cursor(self) -> int:
        """The row under the cursor."""
        return self._cursor

    def follow(self, key: Hashable | None) -> None:
        """Put the cursor back on the row with this key; where it is gone, stay near."""
        found = None if key is None else self.find_row(key)
        self._cursor = max(0, min(self._cursor if found is None else found, self.row_count() - 1))

    def cursor_key(self) -> Hashable | None:
        """The key of the row under the cursor; None in an empty table."""
        return self.row_key(self._cursor) if self._cursor < self.row_count() else None

    def move_to(self, row: int) -> None:
        """Put the cursor on a row, or on the nearest there is."""
        self._cursor = max(0, min(row, self.row_count() - 1))
        self.redraw()

    def _keep_cursor_visible(self, visible: int) -> None:
        visible = max(1, visible)
        self._top = min(max(self._top, self._cursor - visible + 1), self._cursor)
        self._top = max(0, min(self._top, self.row_count() - visible))

    def _page(self) -> int:
        return max(1, self.content_size.height - 2)

    def action_row_up(self) -> None:
        self.move_to(self._cursor - 1)

    def action_row_down(self) -> None:
        self.move_to(self._cursor + 1)

    def action_page_up(self) -> None:
        self.move_to(self._cursor - self._page())

    def action_page_down(self) -> None:
        self.move_to(self._cursor + self._page())

    def action_first_row(self) -> None:
        self.move_to(0)

    def action_last_row(self) -> None:
        self.move_to(self.row_count() - 1)

    def action_columns_left(self) -> None:
        self._first_column = max(1, self._first_column - 1)
        self.redraw()

    def action_columns_right(self) -> None:
        self._first_column += 1  # drawing holds it to what there is
        self.redraw()

    def on_focus(self) -> None:
        """The cursor shows."""
        self.redraw()

    def on_blur(self) -> None:
        """The cursor hides: keys go elsewhere."""
        self.redraw()

    def on_click(self, event: events.Click) -> None:
        """Put the cursor on the row that was clicked."""
        row = self._top + event.y - 1
        if event.y > 0 and row < self.row_count():
            self.move_to(row)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Some rows down."""
        event.stop()
        self.move_to(self._cursor + _WHEEL_ROWS)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Some rows up."""
        event.stop()
        self.move_to(self._cursor - _WHEEL_ROWS)


def _with_thumb(line: Line, y: int, visible: int, top: int, count: int) -> Line:
    """The line with its cell of the scroll bar."""
    if y == 0:
        return line
    size = max(1, visible * visible // count)
    start = round((visible - size) * top / (count - visible))
    return (*line, Piece("┃", "dim") if start <= y - 1 < start + size else Piece("│", "faint"))
