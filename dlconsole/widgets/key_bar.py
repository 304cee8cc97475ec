"""The bottom line: the keys that matter most, made from the action table."""

from __future__ import annotations

from collections.abc import Sequence

from dlconsole.actions import Action, key_word
from dlconsole.widgets.sheet import Line, Piece, Sheet


class KeyBar(Sheet):
    """The labelled actions, as many as fit; a click runs one."""

    def __init__(self, actions: Sequence[Action]) -> None:
        super().__init__()
        self._labelled: dict[str, list[Action]] = {}
        for action in actions:
            if action.label:
                self._labelled.setdefault(action.label, []).append(action)

    def draw(self, width: int, height: int) -> Sequence[Line]:
        """One line; what does not fit whole is left out."""
        del height
        pieces = [Piece(" ")]
        room = width - 1
        for label, actions in self._labelled.items():
            needed = sum(len(key_word(a.keys[0])) + 1 for a in actions) + len(label) + 2
            if needed > room:
                break
            room -= needed
            for action in actions:
                click = f"{action.scope}.{action.id}"
                pieces += [Piece(key_word(action.keys[0]), "key", click), Piece(" ")]
            pieces += [Piece(label, "dim", click), Piece("  ")]
        return [tuple(pieces)]
