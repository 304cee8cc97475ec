"""Numbers with units: what is accepted, and that they look the same everywhere."""

from __future__ import annotations

import math

import pytest

from dlconsole import units


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (5, 5.0),
        (0.25, 0.25),
        ("20", 20.0),
        ("20s", 20.0),
        (" 20 s ", 20.0),
        ("500ms", 0.5),
        ("5m", 300.0),
        ("5min", 300.0),
        ("1.5h", 5400.0),
        ("2d", 172_800.0),
        ("-3s", -3.0),
    ],
)
def test_seconds_are_read_with_their_unit(written: object, seconds: float) -> None:
    assert units.parse_seconds(written) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("written", "size"),
    [(4096, 4096), ("4096", 4096), ("10B", 10), ("10kB", 10_000), ("1.5KiB", 1536), ("4GiB", 2**32)],
)
def test_bytes_are_read_with_their_unit(written: object, size: int) -> None:
    assert units.parse_bytes(written) == size


HOSTILE = [
    *(True, False, None, [], {}, b"5"),
    *("", " ", "s", "5 x", "5 5", "five", "1e3", "1e999", "nan", "inf", "0x10", "5s5s", "٥s", "9" * 400),
    *(math.nan, math.inf, -math.inf, 10**400),
]


@pytest.mark.parametrize("written", HOSTILE, ids=lambda value: repr(value)[:12])
def test_anything_else_is_refused_with_what_is_accepted(written: object) -> None:
    with pytest.raises(ValueError, match="expected a number of seconds, or text such as"):
        units.parse_seconds(written)
    with pytest.raises(ValueError, match="expected a number of bytes, or text such as"):
        units.parse_bytes(written)


@pytest.mark.parametrize("written", ["5KB s", "10mb", "5M", "5KIB"])
def test_a_byte_unit_is_spelled_exactly(written: str) -> None:
    with pytest.raises(ValueError, match="10MB"):
        units.parse_bytes(written)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.5, "0.5"),
        (950, "950"),
        (999.6, "1.00k"),
        (1234, "1.23k"),
        (12_345, "12.3k"),
        (999_499, "999k"),
        (999_999, "1.00M"),
        (4.2e9, "4.20G"),
        (7e12, "7.00T"),
    ],
)
def test_a_short_number_has_three_digits_and_a_letter(value: float, text: str) -> None:
    assert units.format_short(value) == text


def test_a_short_number_never_needs_more_than_five_characters() -> None:
    values = [base * 10**power for power in range(15) for base in (1, 0.9994, 0.9996, 9.994, 9.996, 5.05)]
    assert max(len(units.format_short(value)) for value in values) <= 5


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1536, "1.50 KiB"),
        (1023 * 2**10, "1.00 MiB"),
        (1.4 * 2**30, "1.40 GiB"),
        (2**50, "1.0 PiB"),
    ],
)
def test_bytes_are_shown_in_binary_units(value: float, text: str) -> None:
    assert units.format_bytes(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (0.4, "0 s"),
        (59.6, "1 m"),
        (200, "3 m 20 s"),
        (3599.7, "1 h"),
        (5400, "1 h 30 m"),
        (90_061, "1 d 1 h"),
    ],
)
def test_a_duration_has_at_most_two_units(seconds: float, text: str) -> None:
    assert units.format_duration(seconds) == text


def test_counts_are_grouped_by_thousands() -> None:
    assert units.format_count(1_234_567) == "1,234,567"


def test_text_of_unknown_origin_cannot_steer_a_terminal() -> None:
    assert units.printable("plain, 图 and 🐱") == "plain, 图 and 🐱"
    assert units.printable("a\x1b[31mb\nc\udcff\x9b") == "a\\x1b[31mb\\nc\\udcff\\x9b"
