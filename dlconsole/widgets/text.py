"""Text that came from elsewhere, made fit for a cell of the terminal."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Final

from rich.cells import cell_len, set_cell_size

UNKNOWN: Final = "\N{EN DASH}"
"""Stands where a number is not known."""

_LONGEST: Final = 500
"""Characters looked at; whatever is longer is not read in a console's cell anyway."""


@lru_cache(maxsize=20_000)
def clean(text: str) -> str:
    """One line of harmless text: control characters, escapes and direction marks become `·`.

    Combining marks are dropped, since terminals disagree on their width.
    """
    normal = unicodedata.normalize("NFC", text[:_LONGEST])
    return "".join(
        character if character.isprintable() else "·"
        for character in normal
        if unicodedata.category(character) not in {"Mn", "Me"}
    )


def fit(text: str, width: int, *, right: bool = False) -> str:
    """`text` in exactly `width` cells: padded, or cut with `…`. Numbers go to the right."""
    length = cell_len(text)
    if length <= width:
        padding = " " * (width - length)
        return padding + text if right else text + padding
    if width < 1:
        return ""
    return set_cell_size(text, width - 1) + "…"
