"""A question before something ends. Whoever presses Enter without reading has changed nothing."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Static


class ConfirmScreen(ModalScreen[bool]):
    """Title, words, and two buttons; the one that changes nothing has the focus."""

    CSS_PATH = Path(__file__).with_name("confirm.tcss")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,n", "answer(False)", "No", show=False),
        Binding("y", "answer(True)", "Yes", show=False),
        Binding("left,right,h,l", "other_button", "The other button", show=False),
    ]

    def __init__(self, title: str, words: str, *, yes: str, no: str = "Cancel") -> None:
        super().__init__()
        self._title = title
        self._words = words
        self._yes = yes
        self._no = no

    def compose(self) -> ComposeResult:
        """The box."""
        with Vertical(id="confirm") as box:
            box.border_title = self._title
            yield Static(self._words, id="confirm-words", markup=False)
            with Horizontal(id="confirm-buttons"):
                yield Button(f"{self._no} (Esc)", id="no")
                yield Button(f"{self._yes} (y)", id="yes", variant="warning")

    def on_mount(self) -> None:
        """Focus on the harmless answer."""
        self.query_one("#no", Button).focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """The mouse, or Enter."""
        self.dismiss(event.button.id == "yes")

    def action_answer(self, answer: bool) -> None:
        """A key."""
        self.dismiss(answer)

    def action_other_button(self) -> None:
        """There are two."""
        self.focus_next()
