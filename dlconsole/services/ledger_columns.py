"""Lines of a ledger → columns of a table: which there are, of which type, and their values.

A line's own fields have fixed types. Those of what travelled along (`caption`, `id`, `hash` and the kept
columns) are found by looking at all lines first:

bool      only true and false
int64     only whole numbers between -2**63 and 2**63 - 1
float64   numbers, where no whole number among them loses precision by it
string    everything else: a string stands there as it is, anything else as its JSON text

Null is null in all of them; so are NaN and the infinities, for which JSON has no number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Final, Literal, NamedTuple

import msgspec

from dlconsole.errors import LedgerError, UsageError
from dlconsole.services.ledger_lines import Row

Type = Literal["int64", "float64", "bool", "string"]

OWN: Final[dict[str, Type]] = {
    "key": "string",
    "outcome": "string",
    "url": "string",
    "final_url": "string",
    "path": "string",
    "status": "int64",
    "kind": "string",
    "message": "string",
    "bytes": "int64",
    "format": "string",
    "width": "int64",
    "height": "int64",
    "sha256": "string",
    "md5": "string",
    "attempts": "int64",
    "worker": "string",
    "started_ms": "int64",
    "ended_ms": "int64",
}
"""The fields of a line that are columns of each table, in their order."""
ROLES: Final = ("caption", "id", "hash")
"""Those that come from the source under our names."""
MOST_COLUMNS: Final = 1000
PREFIX: Final = "source_"

_NULL_IF_EMPTY: Final[dict[str, object]] = {
    "final_url": "",
    "message": "",
    "format": "",
    "sha256": "",
    "md5": "",
    "worker": "",
}
_NULL_IF_ZERO: Final[dict[str, object]] = {"width": 0, "height": 0, "started_ms": 0, "ended_ms": 0}
_NULLS: Final = _NULL_IF_EMPTY | _NULL_IF_ZERO
_EXACT: Final = 2**53
_FIELDS: Final = (*OWN, *ROLES, "columns")
_fields = attrgetter(*_FIELDS)
_travelled = attrgetter(*ROLES, "columns")
_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Seen:
    """What the values of a column are: their Python types, the least and the greatest whole number, whether
    one of these would change as a float, and whether a float is none that JSON has.
    """

    kinds: set[type] = field(default_factory=set)
    least: int = 0
    greatest: int = 0
    is_rounded: bool = False
    is_endless: bool = False

    def look(self, values: Sequence[Any]) -> None:
        """Take these in."""
        kinds = set(map(type, values))
        self.kinds |= kinds
        if int in kinds:
            numbers = values if len(kinds) == 1 else [value for value in values if type(value) is int]
            least, greatest = min(numbers), max(numbers)
            self.least, self.greatest = min(self.least, least), max(self.greatest, greatest)
            if not self.is_rounded and not -_EXACT <= least <= greatest <= _EXACT:
                self.is_rounded = any(map(_is_rounded, numbers))
        if float in kinds and not self.is_endless:
            numbers = values if len(kinds) == 1 else [value for value in values if type(value) is float]
            self.is_endless = not all(map(math.isfinite, numbers))

    @property
    def type(self) -> Type:
        """The narrowest type that holds them all."""
        kinds = self.kinds - {type(None)}
        if kinds == {bool}:
            return "bool"
        if kinds == {int} and self.least >= -(2**63) and self.greatest < 2**63:
            return "int64"
        if float in kinds and kinds <= {int, float} and not self.is_rounded:
            return "float64"
        return "string"


def _is_rounded(number: int) -> bool:
    try:
        return int(float(number)) != number
    except OverflowError:
        return True


class Column(NamedTuple):
    """A column of the table; `source` is its name in the line's `columns`, None for a field of the line."""

    name: str
    type: Type
    source: str | None = None
    seen: Seen | None = None


class Table:
    """The columns of a table: first shown all rows, then asked for values."""

    def __init__(self, chosen: Sequence[str] = ()) -> None:
        """`chosen` names the columns wanted, in their order; none: all."""
        self._chosen = chosen
        self._wanted = {name for one in chosen for name in _sources(one)}
        self._roles = {name: Seen() for name in ROLES}
        self._kept: dict[str, Seen] = {}

    def look(self, rows: Sequence[Row]) -> None:
        """Learn types from these. Raises LedgerError where there are more columns than a table may have."""
        if not rows:
            return
        *roles, kept = zip(*map(_travelled, rows), strict=True)
        for seen, values in zip(self._roles.values(), roles, strict=True):
            seen.look(values)
        for names, columns in _alike(kept):
            for name, values in zip(names, zip(*columns, strict=True), strict=True):
                seen_of_it = self._seen(name)
                if seen_of_it is not None:
                    seen_of_it.look(values)

    def _seen(self, name: str) -> Seen | None:
        """Of a kept column; None of one that is not wanted."""
        seen = self._kept.get(name)
        if seen is None and (not self._chosen or name in self._wanted):
            if len(self._kept) == MOST_COLUMNS:
                raise LedgerError(
                    f"the ledger has more than {MOST_COLUMNS} kept columns, so their names are values: "
                    "--columns names those that are wanted"
                )
            seen = self._kept[name] = Seen()
        return seen

    def columns(self) -> list[Column]:
        """Those of the table: a line's own, then the kept ones as they first came. Raises UsageError where
        one was chosen that there is not.
        """
        own = [Column(name, type_) for name, type_ in OWN.items()]
        own += [Column(name, seen.type, None, seen) for name, seen in self._roles.items()]
        taken = {column.name for column in own}
        free = {source: clean(source) for source in self._kept if clean(source) not in taken}
        taken.update(free.values())
        kept: list[Column] = []
        named: set[str] = set()
        for source, seen in self._kept.items():
            name = free.get(source, "")
            if not name or name in named:  # another one becomes that name only when it is cleaned
                name = clean(source)
                while name in taken:
                    name = PREFIX + name
                taken.add(name)
            named.add(name)
            kept.append(Column(name, seen.type, source, seen))
        return self._of(own + kept)

    def _of(self, columns: list[Column]) -> list[Column]:
        if not self._chosen:
            return columns
        known = {column.name: column for column in columns}
        missing = [name for name in self._chosen if name not in known]
        if missing:
            raise UsageError(f"no such column: {', '.join(missing)} (columns: {', '.join(known)})")
        return [known[name] for name in dict.fromkeys(self._chosen)]


def _alike(kept: Sequence[Any]) -> Iterator[tuple[tuple[str, ...], list[Iterable[Any]]]]:
    """The values of kept columns, those together that have the same names in the same order."""
    objects = [_object(columns) for columns in kept if columns]
    layouts = set(map(tuple, objects))
    for names in layouts if len(layouts) < 2 else dict.fromkeys(map(tuple, objects)):
        alike = objects if len(layouts) < 2 else [columns for columns in objects if tuple(columns) == names]
        yield names, [columns.values() for columns in alike]


def _object(columns: Any) -> dict[str, Any]:
    """A row's kept columns. What is no object, which no worker writes, counts as one named `columns`."""
    if isinstance(columns, dict):
        return columns
    return {} if columns is None else {"columns": columns}


def _sources(name: str) -> set[str]:
    """The kept columns that may have this name in the table."""
    found = {name}
    while name.startswith(PREFIX):
        name = name.removeprefix(PREFIX)
        found.add(name)
    return found


def values_of(rows: Sequence[Row], columns: Sequence[Column]) -> list[Sequence[Any]]:
    """The values of each column for these rows."""
    if not rows:
        return [() for _ in columns]
    own = dict(zip(_FIELDS, zip(*map(_fields, rows), strict=True), strict=True))
    kept = _kept_values(own["columns"], [column.source for column in columns if column.source is not None])
    return [
        _own_values(column.name, own[column.name])
        if column.name in OWN
        else _converted(own[column.name] if column.source is None else kept[column.source], column)
        for column in columns
    ]


def _kept_values(kept: Sequence[Any], sources: Sequence[str]) -> dict[str, Sequence[Any]]:
    objects = list(map(_object, kept))
    layouts = set(map(tuple, objects))
    if len(layouts) > 1:
        return {source: [columns.get(source) for columns in objects] for source in sources}
    nothing: Sequence[Any] = (None,) * len(objects)
    found = zip(*(columns.values() for columns in objects), strict=True)
    return dict.fromkeys(sources, nothing) | dict(zip(layouts.pop(), found, strict=False))


def _own_values(name: str, values: Sequence[Any]) -> Sequence[Any]:
    if name not in _NULLS or _NULLS[name] not in values:
        return values
    empty = _NULLS[name]
    return [None if value == empty else value for value in values]


def _converted(values: Sequence[Any], column: Column) -> Sequence[Any]:
    seen = column.seen
    if seen is None or column.type in {"int64", "bool"}:
        return values
    if column.type == "float64":
        if int not in seen.kinds and not seen.is_endless:
            return values
        return [None if value is None or not math.isfinite(value) else float(value) for value in values]
    if seen.kinds <= {str, type(None)}:
        return values
    return [value if value is None or type(value) is str else _text(value) for value in values]


def _text(value: Any) -> str | None:
    """A value as JSON; NaN and the infinities are null, also inside."""
    if type(value) is float and not math.isfinite(value):
        return None
    try:
        return _encode(value).decode()
    except (ValueError, OverflowError, RecursionError):  # lone surrogates, integers beyond 64 bits
        return json.dumps(_finite(value), separators=(",", ":"))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def clean(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair that has no other half: UTF-8 has no bytes for
    it. So it becomes what a reader makes of bytes that are no UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
