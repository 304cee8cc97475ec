"""Queue items as JSON objects, read as leniently as Python's own reader does: others wrote them."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec

_STRICT: Final = msgspec.json.Decoder(dict[str, Any])
_MAX_DIGITS: Final = 4000
"""Longer integers stay text: Python refuses to convert them."""


def read_object(body: bytes) -> dict[str, Any] | None:
    """The JSON object in these bytes, or None where there is none.

    Bytes that are no UTF-8, lone surrogates and numbers of any size, which a strict reader refuses, do
    not make an item less of an object; nesting that no reader survives does.
    """
    try:
        return _STRICT.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        found = json.loads(body.decode("utf-8", "surrogateescape"), parse_int=_integer)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= _MAX_DIGITS else digits
