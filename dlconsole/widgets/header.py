"""The top line: which fleet this is, and whether it may be changed."""

from __future__ import annotations

from collections.abc import Sequence

from textual.color import Color

from dlconsole.widgets.sheet import Line, Piece, Sheet, spread
from dlconsole.widgets.text import clean
from dlconsole.widgets.tones import CONTEXT_COLOURS, PANEL


class Header(Sheet):
    """Dataset, context, the read-only badge, and which Redis; in the context's colour."""

    def __init__(self, *, dataset: str, context: str, colour: str, read_only: bool, redis_name: str) -> None:
        super().__init__()
        self._dataset = clean(dataset)
        self._context_name = clean(context)
        self._colour = colour
        self._read_only = read_only
        self._redis_name = clean(redis_name)

    def on_mount(self) -> None:
        """The whole line wears a hint of the context's colour."""
        if self._colour != "default":
            self.styles.background = Color.parse(PANEL).blend(Color.parse(CONTEXT_COLOURS[self._colour]), 0.3)

    def draw(self, width: int, height: int) -> Sequence[Line]:
        """One line; a narrow terminal loses the Redis name first."""
        del height
        left = [Piece(" dlconsole ", f"title-{self._colour}"), Piece(f" {self._dataset}", "strong")]
        if self._context_name:
            left.append(Piece(f"  context {self._context_name}"))
        if self._read_only:
            left += [Piece("  "), Piece(" READ-ONLY ", "badge")]
        return [spread(left, [Piece(f"{self._redis_name} ")], width)]
