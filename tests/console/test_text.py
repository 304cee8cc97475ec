"""Text of unknown origin, made harmless and fitted."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from dlconsole.widgets.text import clean, fit

HOSTILE = [
    "[red]not markup[/red]",
    "\x1b[31mescape\x1b[0m\x1b]0;title\x07",
    "two\nlines\r\nand\ttabs\x00",
    "right\u202eto left\u2066",
    "x" * 100_000,
    "e\u0301" + "a" + "\u0301" * 5_000,
    "図書館" * 50,
    "👨\u200d👩\u200d👧\ufe0f family",
    "\ud800 lone surrogate",
    "\u2028\u2029\x85",
    "",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_clean_text_is_printable_and_short(text: str) -> None:
    cleaned = clean(text)
    assert cleaned.isprintable() or not cleaned
    assert len(cleaned) <= 500


def test_what_looks_like_markup_is_only_text() -> None:
    assert clean("[red]x[/red]") == "[red]x[/red]"


def test_accents_survive_and_stacks_of_marks_do_not() -> None:
    assert clean("Zu\u0308rich") == "Zürich"
    assert clean("a" + "\u0336" * 9) == "a"


@pytest.mark.parametrize("text", [clean(text) for text in HOSTILE])
@pytest.mark.parametrize("width", [0, 1, 2, 7, 30])
def test_fitted_text_has_exactly_its_width(text: str, width: int) -> None:
    assert cell_len(fit(text, width)) == width
    assert cell_len(fit(text, width, right=True)) == width


def test_what_is_cut_says_so() -> None:
    assert fit("node-12.example", 8) == "node-12…"
    assert fit("12", 5, right=True) == "   12"
