"""Queue and error items as JSON: read as leniently as Python's own reader does, because others wrote them,
and written so that none becomes a stop sentinel by it.
"""

from __future__ import annotations

import json
from typing import Any, Final, Literal

import msgspec

SENTINEL: Final = b"stop_this_task"
"""What a legacy list item contains that tells one worker to stop."""

_ESCAPED_SENTINEL: Final = b"stop\\u005fthis_task"
_STRICT: Final = msgspec.json.Decoder()
_MAX_DIGITS: Final = 4000
"""Longer integers stay text: Python refuses to convert them."""


def read_object(body: bytes) -> dict[str, Any] | None:
    """The JSON object in these bytes, or None where there is none.

    Bytes that are no UTF-8, lone surrogates and numbers of any size, which a strict reader refuses, do
    not make an item less of an object; nesting that no reader survives does.
    """
    try:
        found = _read(body, "surrogateescape")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def is_json(body: bytes) -> bool:
    """Whether Python's own reader takes these bytes, as UTF-8, for a JSON value of any type."""
    try:
        _read(body, "strict")
    except (ValueError, RecursionError):
        return False
    return True


def write_object(fields: dict[str, Any]) -> bytes:
    """The object as JSON, as `json.dumps` writes it, but for the text of a stop sentinel: its strings may
    say that, its bytes must not, as where they came with an escape in it that readers undo.
    """
    return hide_sentinel(json.dumps(fields).encode())


def hide_sentinel(body: bytes) -> bytes:
    """The same JSON, in bytes that do not say the text of a stop sentinel."""
    # In JSON this text can stand only inside a string, and no part of it ends an escape.
    return body.replace(SENTINEL, _ESCAPED_SENTINEL)


def _read(body: bytes, errors: Literal["strict", "surrogateescape"]) -> Any:
    """Raises ValueError, RecursionError."""
    try:
        return _STRICT.decode(body)
    except (ValueError, RecursionError):  # much faster than Python's reader, and stricter
        return json.loads(body.decode("utf-8", errors), parse_int=_integer)


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= _MAX_DIGITS else digits
