"""Columns of Parquet → Python's values, whatever their type, and how many bytes they are."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

_OUT_OF_RANGE: Final = "<value out of range"
"""How Arrow begins the text of a time that it cannot write."""


class BadText(str):
    """What a column holds that is not UTF-8, or holds such text."""

    __slots__ = ()


class Values:
    """Takes Arrow's arrays apart. `pyarrow` is the module."""

    def __init__(self, pyarrow: Any) -> None:
        import pyarrow.compute as pc  # noqa: PLC0415  (an extra, and slow to load)

        self._pa, self._pc, self._types = pyarrow, pc, pyarrow.types

    def of(self, column: Any) -> tuple[list[Any], bool]:
        """A column as Python's values, and whether one of them is a `BadText`. What Python's own types cannot
        hold is ISO text, or a whole number in the column's unit.
        """
        pa, types = self._pa, self._types
        if types.is_dictionary(column.type):
            column = column.dictionary_decode()
        try:
            if getattr(column.type, "unit", "") == "ns":  # more than Python's own types can hold
                texts = column.cast(pa.string()).to_pylist()
                if not any(text and text.startswith(_OUT_OF_RANGE) for text in texts):
                    return list(map(_iso, texts)), False
            else:
                return column.to_pylist(), False
        except UnicodeDecodeError:
            if types.is_string(column.type) or types.is_large_string(column.type):
                return list(map(_decoded, column.cast(pa.large_binary()).to_pylist())), True
        except (ValueError, TypeError, OverflowError, pa.ArrowException):
            pass
        return self._one_by_one(column)

    def _one_by_one(self, column: Any) -> tuple[list[Any], bool]:
        values: list[Any] = []
        has_bad = False
        for scalar in column:
            try:
                values.append(self._value(scalar))
            except UnicodeDecodeError:
                values.append(BadText(f"a {column.type} that holds text that is not UTF-8"))
                has_bad = True
        return values, has_bad

    def _value(self, scalar: Any) -> Any:
        """Raises UnicodeDecodeError."""
        try:
            return scalar.as_py()
        except UnicodeDecodeError:
            raise
        except (ValueError, TypeError, OverflowError, self._pa.ArrowException):
            pass
        types, kind = self._types, scalar.type
        if types.is_map(kind):
            return [(self._value(pair[0]), self._value(pair[1])) for pair in scalar.values]
        if types.is_nested(kind) and not types.is_struct(kind):
            return [self._value(inner) for inner in scalar.values]
        if types.is_struct(kind):
            return {kind.field(index).name: self._value(scalar[index]) for index in range(kind.num_fields)}
        if types.is_dictionary(kind) or isinstance(kind, self._pa.BaseExtensionType):
            return self._value(scalar.value)
        return self._number(scalar)

    def _number(self, scalar: Any) -> Any:
        """A time that Python's types cannot hold: of nanoseconds its text, of others the number."""
        if getattr(scalar.type, "unit", "") == "ns":
            text = scalar.cast(self._pa.string()).as_py()
            if not text.startswith(_OUT_OF_RANGE):
                return _iso(text)
        return scalar.value if hasattr(scalar, "value") else str(scalar)

    def longest(self, batch: Any) -> int:
        """Bytes of a row of the longest texts that the columns' dictionaries have: a bound for any of its row
        group's rows, as far as these are in dictionaries. Where that is not known, a bound beyond all memory.
        """
        return sum(self._longest(column) for column in batch.columns)

    def _longest(self, column: Any) -> int:
        if isinstance(column.type, self._pa.BaseExtensionType):
            column = column.storage
        if not self._types.is_dictionary(column.type):
            return 1 << 62  # nested: the dictionaries are not those of its row group
        return self._pc.max(self._pc.binary_length(column.dictionary)).as_py() or 0

    def sizes(self, batch: Any, most: int) -> list[int]:
        """Bytes of each row, nearly: what is no text counts with its column's average. Where all rows
        together have no more than `most`, none at all: that is quick.
        """
        if batch.nbytes <= most and not any("dictionary<" in str(kind) for kind in batch.schema.types):
            return []
        return [sum(sizes) for sizes in zip(*map(self._sizes, batch.columns), strict=True)]

    def _sizes(self, column: Any) -> list[int]:
        types, kind = self._types, column.type
        if isinstance(kind, self._pa.BaseExtensionType):
            return self._sizes(column.storage)
        if types.is_dictionary(kind):
            sizes = self._sizes(column.dictionary)
            return [0 if index is None else sizes[index] for index in column.indices.to_pylist()]
        if types.is_struct(kind):
            inner = [self._sizes(column.field(index)) for index in range(kind.num_fields)]
            return [sum(sizes) for sizes in zip(*inner, strict=True)] if inner else [0] * len(column)
        if types.is_map(kind):
            return self._summed(column, [self._sizes(column.keys), self._sizes(column.items)])
        if types.is_list(kind) or types.is_large_list(kind):
            return self._summed(column, [self._sizes(column.values)])
        if types.is_string_view(kind) or types.is_binary_view(kind):
            column = column.cast(self._pa.large_binary())
        elif not (types.is_unicode(kind) or types.is_large_unicode(kind) or self._is_binary(kind)):
            return [column.nbytes // max(1, len(column))] * len(column)
        return self._pc.fill_null(self._pc.binary_length(column), 0).to_pylist()  # type: ignore[no-any-return]

    def _is_binary(self, kind: Any) -> bool:
        return bool(self._types.is_binary(kind) or self._types.is_large_binary(kind))

    def _summed(self, column: Any, inner: list[list[int]]) -> list[int]:
        ends = [0]
        for sizes in zip(*inner, strict=True):
            ends.append(ends[-1] + sum(sizes))
        offsets = column.offsets.to_pylist()
        return [ends[end] - ends[begin] for begin, end in pairwise(offsets)]


def _iso(text: str | None) -> str | None:
    return text and text.replace(" ", "T")


def _decoded(value: bytes | None) -> str | None:
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return BadText(value.decode("utf-8", "backslashreplace"))
