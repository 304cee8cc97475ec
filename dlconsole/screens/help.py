"""The help: every key of the screen below it, from the action table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen

from dlconsole.actions import Action, grouped, key_words
from dlconsole.widgets.sheet import Line, Piece, Sheet
from dlconsole.widgets.text import fit

_KEYS_WIDTH = 12


class KeyTable(Sheet):
    """The actions under their headings."""

    def __init__(self, actions: Sequence[Action]) -> None:
        super().__init__(id="help-keys")
        self._drawing = list(_lines(actions))
        self.styles.height = len(self._drawing)

    def draw(self, width: int, height: int) -> Sequence[Line]:
        """All lines; the container scrolls them."""
        del width, height
        return self._drawing


def _lines(actions: Sequence[Action]) -> Sequence[Line]:
    lines: list[Line] = []
    for group, members in grouped(actions).items():
        if lines:
            lines.append(())
        lines.append((Piece(f" {group.value}", "strong"),))
        for action in members:
            danger = (Piece("  cannot be undone", "bad"),) if action.danger else ()
            lines.append(
                (Piece(f"  {fit(key_words(action), _KEYS_WIDTH)}", "key"), Piece(action.words), *danger)
            )
    return lines


class HelpScreen(ModalScreen[None]):
    """A box over the screen it explains. The key that opened it closes it."""

    CSS_PATH = Path(__file__).with_name("help.tcss")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark", "dismiss", "Close", show=False),
        Binding("j", "scroll('down')", show=False),
        Binding("k", "scroll('up')", show=False),
    ]

    def __init__(self, title: str, actions: Sequence[Action]) -> None:
        super().__init__()
        self._title = title
        self._actions = actions

    def compose(self) -> ComposeResult:
        """The box."""
        with VerticalScroll(id="help") as box:
            box.border_title = f"Keys of the {self._title}"
            box.border_subtitle = "Esc closes"
            yield KeyTable(self._actions)

    def action_scroll(self, way: str) -> None:
        """As the arrow keys do it."""
        box = self.query_one("#help", VerticalScroll)
        if way == "down":
            box.scroll_down(animate=False)
        else:
            box.scroll_up(animate=False)
