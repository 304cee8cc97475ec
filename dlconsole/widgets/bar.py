"""A horizontal bar, two steps a cell."""

from __future__ import annotations

from dlconsole.widgets.sheet import Piece


def bar(share: float, width: int, tone: str) -> list[Piece]:
    """`share` (0 to 1) of `width` cells. The rest is a thinner line, to be told apart without colour.

    Anything above nothing shows, and only all of it fills the bar.
    """
    halves = round(min(1.0, max(0.0, share)) * width * 2)
    if share > 0:
        halves = max(1, halves)
    if share < 1:
        halves = min(2 * width - 1, halves)
    full, half = divmod(halves, 2)
    filled = "━" * full + "╸" * half
    return [Piece(filled, tone), Piece("─" * (width - len(filled)), "faint")]
