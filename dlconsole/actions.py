"""One table of everything a key can do. The bindings, the key bar, the palette, the help screen and
`docs/keys.md` are all made from it, so that none of them can say something else than the others.

Textual is not imported here: the table is also read by scripts and tests that open no terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Group(StrEnum):
    """The headings of the help screen, in its order."""

    GENERAL = "General"
    PICTURE = "The picture"
    MOVING = "Moving in a table"


class Scope(StrEnum):
    """Who carries an action out."""

    APP = "app"
    TABLE = "table"
    DIALOG = "dialog"


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that can be done.

    `id` is the method `action_<id>` of whoever `scope` names. `keys` are Textual's key names, the
    first is the one that is shown where there is room for one. `words` say what it does, for the
    palette and the help screen; `label` is the key bar's one word, empty for what is not listed there.
    Actions of the same label share one place in the key bar.

    `danger` marks what cannot be undone; `read_only` says whether a read-only context allows it (the
    services refuse what it does not; here it is only hidden). `urgent` keys also act under a dialog.
    """

    id: str
    keys: tuple[str, ...]
    words: str
    group: Group
    scope: Scope
    label: str = ""
    danger: bool = False
    read_only: bool = True
    urgent: bool = False

    @property
    def in_palette(self) -> bool:
        """Whether the palette lists it: moving, closing and the palette itself are only keys."""
        return self.scope is Scope.APP and self.id not in {"command_palette", "interrupt"}


ACTIONS: Final = (
    Action("help", ("question_mark",), "Show every key of this screen", Group.GENERAL, Scope.APP, "help"),
    Action(
        "command_palette",
        ("ctrl+p",),
        "Open the palette: find an action by its name",
        Group.GENERAL,
        Scope.APP,
        "palette",
        urgent=True,
    ),
    Action(
        "back", ("escape",), "Go back: close the help, the palette or a question", Group.GENERAL, Scope.DIALOG
    ),
    Action("quit", ("q",), "Quit the console", Group.GENERAL, Scope.APP, "quit"),
    Action("interrupt", ("ctrl+c",), "Quit, also from a dialog", Group.GENERAL, Scope.APP, urgent=True),
    Action("freeze", ("space",), "Freeze the picture, or let it go on", Group.PICTURE, Scope.APP, "freeze"),
    Action(
        "refresh_less",
        ("plus", "equals_sign"),
        "Renew the picture less often",
        Group.PICTURE,
        Scope.APP,
        "refresh",
    ),
    Action("refresh_more", ("minus",), "Renew the picture more often", Group.PICTURE, Scope.APP, "refresh"),
    Action("row_up", ("up", "k"), "One row up", Group.MOVING, Scope.TABLE),
    Action("row_down", ("down", "j"), "One row down", Group.MOVING, Scope.TABLE),
    Action("columns_left", ("left", "h"), "Show the columns to the left", Group.MOVING, Scope.TABLE),
    Action("columns_right", ("right", "l"), "Show the columns to the right", Group.MOVING, Scope.TABLE),
    Action("page_up", ("pageup",), "One page up", Group.MOVING, Scope.TABLE),
    Action("page_down", ("pagedown",), "One page down", Group.MOVING, Scope.TABLE),
    Action("first_row", ("g", "home"), "To the first row", Group.MOVING, Scope.TABLE),
    Action("last_row", ("G", "end"), "To the last row", Group.MOVING, Scope.TABLE),
)

SCREENS: Final[Mapping[str, tuple[Scope, ...]]] = MappingProxyType(
    {"overview": (Scope.APP, Scope.DIALOG, Scope.TABLE)}
)
"""Which actions a screen offers, by the screen's name."""

_KEY_WORDS: Final = MappingProxyType(
    {
        "question_mark": "?",
        "escape": "Esc",
        "space": "Space",
        "plus": "+",
        "equals_sign": "=",
        "minus": "-",
        "up": "↑",
        "down": "↓",
        "left": "←",
        "right": "→",
        "pageup": "PgUp",
        "pagedown": "PgDn",
        "home": "Home",
        "end": "End",
    }
)


def key_word(key: str) -> str:
    """How a key is written for a reader: `question_mark` → `?`, `ctrl+p` → `Ctrl+P`."""
    if key.startswith("ctrl+"):
        return f"Ctrl+{key.removeprefix('ctrl+').upper()}"
    return _KEY_WORDS.get(key, key)


def key_words(action: Action) -> str:
    """All keys of an action: `↑ k`."""
    return " ".join(key_word(key) for key in action.keys)


def actions_of(screen: str, *, read_only: bool) -> tuple[Action, ...]:
    """What the screen named `screen` offers, in the table's order; in a read-only context only what
    changes nothing.
    """
    return tuple(a for a in ACTIONS if a.scope in SCREENS[screen] and (a.read_only or not read_only))


def grouped(actions: Iterable[Action]) -> dict[Group, list[Action]]:
    """The actions under their headings, in the headings' order; without the empty ones."""
    listed = list(actions)
    groups = {group: [a for a in listed if a.group is group] for group in Group}
    return {group: members for group, members in groups.items() if members}


def allowed(action_id: str, *, read_only: bool) -> bool:
    """Whether the action may be offered. What is not in the table is Textual's own, and may."""
    return not read_only or all(action.read_only for action in ACTIONS if action.id == action_id)
