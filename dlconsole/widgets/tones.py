"""The colours: one calm dark palette, and the tones in which a piece of text can be drawn.

Tones are plain styles and no component classes of the stylesheet: with a dozen widgets those cost
a quarter of a second at every start.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from rich.style import Style
from textual.theme import Theme

INK: Final = "#0e1319"
SURFACE: Final = "#141b23"
PANEL: Final = "#1a232d"
TEXT: Final = "#c8d0d9"
DIM: Final = "#8593a2"
FAINT: Final = "#35414e"
CURSOR: Final = "#22374a"
BLUE: Final = "#58a6d6"
GREEN: Final = "#6bb58b"
YELLOW: Final = "#d6a952"
RED: Final = "#d9716f"
SAGE: Final = "#8fb8a8"

CONTEXT_COLOURS: Final = MappingProxyType(
    {
        "default": BLUE,
        "red": RED,
        "orange": "#d98a4e",
        "yellow": YELLOW,
        "green": GREEN,
        "cyan": "#4fb3b3",
        "blue": "#5b8fd9",
        "magenta": "#b57fc9",
    }
)
"""What a context may choose for its header (`dlconsole.settings.Colour`)."""

SHADES: Final = ("#23495f", "#33678a", "#4587b1", BLUE)
"""The plot's columns, from the foot to the top."""

TONES: Final = MappingProxyType(
    {
        "plain": Style(),
        "strong": Style(bold=True),
        "dim": Style(color=DIM),
        "faint": Style(color=FAINT),
        "good": Style(color=GREEN, bold=True),
        "warn": Style(color=YELLOW, bold=True),
        "bad": Style(color=RED, bold=True),
        "accent": Style(color=BLUE, bold=True),
        "key": Style(color=BLUE, bold=True),
        "code": Style(color=SAGE),
        "badge": Style(color=INK, bgcolor=YELLOW, bold=True),
        "alert": Style(color=INK, bgcolor=RED, bold=True),
        "cursor": Style(bgcolor=CURSOR),
        **{f"title-{n}": Style(color=INK, bgcolor=c, bold=True) for n, c in CONTEXT_COLOURS.items()},
        **{f"plot-{i}": Style(color=c) for i, c in enumerate(SHADES)},
        # Full cells have a background too: it fills the gaps that some fonts leave between lines.
        **{f"full-{i}": Style(color=c, bgcolor=c) for i, c in enumerate(SHADES)},
    }
)

THEME: Final = Theme(
    name="dlconsole",
    primary=BLUE,
    secondary=SAGE,
    accent=BLUE,
    foreground=TEXT,
    background=INK,
    surface=SURFACE,
    panel=PANEL,
    success=GREEN,
    warning=YELLOW,
    error=RED,
    dark=True,
    variables={
        "block-cursor-background": CURSOR,
        "block-cursor-foreground": "#e4ebf2",
        "block-cursor-text-style": "bold",
        "scrollbar": FAINT,
        "scrollbar-background": SURFACE,
    },
)
"""The same colours for Textual's own widgets: the palette, boxes, buttons."""
