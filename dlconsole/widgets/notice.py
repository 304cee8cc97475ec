"""Words in the middle of the screen, where there is no picture to draw."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from dlconsole.widgets.sheet import Line, Piece, Sheet
from dlconsole.widgets.text import clean, fit

Paragraph = tuple[str, str]
"""Words and their tone. Words in the tone `code` are not wrapped."""


class Notice(Sheet):
    """A heading and some lines, to the left of the middle."""

    def __init__(self) -> None:
        super().__init__(id="notice")
        self._paragraphs: Sequence[Paragraph] = ()

    def show_paragraphs(self, paragraphs: Sequence[Paragraph]) -> None:
        """Take over new words."""
        if paragraphs != self._paragraphs:
            self._paragraphs = paragraphs
            self.redraw()

    def draw(self, width: int, height: int) -> Sequence[Line]:
        """The words, wrapped, in the upper third."""
        margin = 2 if width < 90 else 6
        room = max(1, width - 2 * margin)
        lines: list[Line] = []
        for words, tone in self._paragraphs:
            text = clean(words)
            wrapped = [fit(text, room).rstrip()] if tone == "code" else textwrap.wrap(text, room) or [""]
            lines += [(Piece(" " * margin), Piece(line, tone)) for line in wrapped]
        above: list[Line] = [()] * max(0, (height - len(lines)) // 3)
        return [*above, *lines][:height]
