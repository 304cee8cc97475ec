"""What separates the columns of a list that is called csv, and whether one that is called tsv has quotes."""

from __future__ import annotations

import csv
import io
import re
from typing import Final

from dlconsole.services.manifests.records import Records
from dlconsole.services.manifests.rows import SAMPLE_ROWS, BadRow

SEPARATORS: Final = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
_LINES: Final = 1000
"""Of how many lines the rows are taken."""
_HTTP: Final = re.compile(r"\s*https?://", re.IGNORECASE)
_URL_NAME: Final = re.compile(r".*(url|uri|link|src|href)\s*", re.IGNORECASE)


def separator(lines: list[bytes], max_bytes: int) -> str:
    """That of a list's first lines: a comma, but where commas make no table of them and another one does."""
    if _fits(",", lines, max_bytes):
        return ","
    return next((mark for mark in SEPARATORS if mark != "," and _fits(mark, lines, max_bytes)), ",")


def _fits(mark: str, lines: list[bytes], max_bytes: int) -> bool:
    """Whether the rows have equally many columns, at least two, and one of them has the URLs. Of a list
    without names, whose URLs may hold any separator, a second column must look like text: with a space.
    """
    records = Records(mark, max_bytes)
    records.add(lines[:_LINES])
    found, _ = records.take(SAMPLE_ROWS, is_last=True)
    rows = [row for row in found if isinstance(row, list)]
    if not rows:
        return False
    first, rest = rows[0], rows[1:]
    equal = sum(len(row) == len(first) for row in rest)
    if len(first) < 2 or equal * 10 < len(rest) * 9:
        return False
    if any(map(_HTTP.match, first)):
        return mark == "," or any(
            " " in cell.strip() for row in rows for cell in row if not _HTTP.match(cell)
        )
    if any(map(_URL_NAME.fullmatch, first)):
        return True
    return any(_HTTP.match(cell) for row in rest for cell in row)


def is_quoted(lines: list[bytes], max_bytes: int) -> bool | None:
    """Whether the first lines of a tsv are what a writer of csv with tabs makes of their rows, to the byte,
    and quotes mean something in them. None: not so, but some fields are quoted and have doubled quotes.
    """
    lines = lines[:_LINES]
    if not any(b'"' in line for line in lines):
        return False
    records = Records("\t", max_bytes)
    records.add(lines)
    found, size = records.take(SAMPLE_ROWS, is_last=False)
    rows = [row or [] for row in found if not isinstance(row, BadRow)]
    source = b"\n".join([*lines, b""])[:size].decode("utf-8", "replace").replace("\r\n", "\n")
    if len(rows) == len(found) and '"' in source:
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
            out = io.StringIO()
            csv.writer(out, delimiter="\t", lineterminator="\n", quoting=quoting).writerows(rows)
            if out.getvalue().replace("\r\n", "\n") == source:
                return True
    fields = (field.strip() for line in lines for field in line.split(b"\t"))
    return None if any(map(_has_doubled, fields)) else False


def _has_doubled(field: bytes) -> bool:
    inner = field[1:-1]
    return field[:1] == field[-1:] == b'"' and b'""' in inner and b'"' not in inner.replace(b'""', b"")
