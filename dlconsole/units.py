"""Numbers with units: how settings are written, and how screens and commands print them.

No I/O and nothing of ours imported; one place, so that 1.4 GiB looks the same everywhere.
"""

from __future__ import annotations

import re
from typing import Final

_NUMBER_UNIT: Final = re.compile(r"\s*([+-]?[0-9]+(?:\.[0-9]+)?)\s*([A-Za-zµ]*)\s*")

_SECONDS: Final = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES: Final = {
    "": 1,
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}

_LARGEST: Final = 2.0**63

SECONDS_RULE: Final = "a number of seconds, or text such as '500ms', '20s', '5m', '1h'"
BYTES_RULE: Final = "a number of bytes, or text such as '512KiB', '10MB', '4GiB'"


def parse_seconds(value: object) -> float:
    """Seconds from a number or from text with a unit. Raises ValueError saying what is accepted."""
    return float(_parse(value, _SECONDS, SECONDS_RULE))


def parse_bytes(value: object) -> int:
    """Bytes from a number or from text with a unit. Raises ValueError saying what is accepted."""
    return int(_parse(value, _BYTES, BYTES_RULE))


def _parse(value: object, units: dict[str, float] | dict[str, int], rule: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"expected {rule}")  # noqa: TRY004  (pydantic reports ValueError, not TypeError)
    if isinstance(value, str):
        match = _NUMBER_UNIT.fullmatch(value)
        if match is None or match[2] not in units:
            raise ValueError(f"expected {rule}")
        value = float(match[1]) * units[match[2]]
    if not -_LARGEST <= value <= _LARGEST:  # NaN is neither; beyond it int() and float() fail
        raise ValueError(f"expected {rule}")
    return value


def format_count(value: int) -> str:
    """1234567 → '1,234,567'."""
    return f"{value:,}"


def format_short(value: float) -> str:
    """At most five characters: 950 → '950', 12345 → '12.3k', 4.2e9 → '4.20G'."""
    if abs(value) < 10 and value != int(value):
        return f"{value:.1f}"
    for unit in ("", "k", "M", "G", "T"):
        if abs(value) < 999.5:
            if not unit:
                return f"{value:.0f}"
            return f"{value:.{2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0}f}{unit}"
        value /= 1000
    return f"{value:.0f}P"


def format_bytes(value: float) -> str:
    """Binary units, three digits: 1536 → '1.50 KiB', 0 → '0 B'."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 999.5:
            if unit == "B":
                return f"{value:.0f} B"
            return f"{value:.{2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0}f} {unit}"
        value /= 1024
    return f"{value:.1f} PiB"


def format_duration(seconds: float) -> str:
    """Two units at most: 5 → '5 s', 200 → '3 m 20 s', 90061 → '1 d 1 h'."""
    left = max(0, round(seconds))
    for size, unit, smaller, small_unit in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if left >= size:
            rest = left % size // smaller
            return f"{left // size} {unit}" + (f" {rest} {small_unit}" if rest else "")
    return f"{left} s"


def printable(text: str) -> str:
    """Text of unknown origin (a file's name, a column's, a server's words) for a terminal: control
    characters, which could steer it, and halves of characters, which cannot be printed, are escaped.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
