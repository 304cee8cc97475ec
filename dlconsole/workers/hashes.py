"""Whether a body is the one that its task's `hash` names."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

_HEX_DIGITS: Final = {"md5": 32, "sha256": 64}
_HEX: Final = frozenset("0123456789abcdef")


def wanted_digest(told: object, algorithm: str) -> str | None:
    """The digest, lower case, that a task's `hash` names; None where it has none of this algorithm."""
    if not isinstance(told, str) or len(told) != _HEX_DIGITS[algorithm]:
        return None
    digest = told.lower()
    return digest if _HEX.issuperset(digest) else None


def told_in(value: msgspec.Raw | msgspec.UnsetType) -> str | None:
    """The text that a task's `hash` is; None where it is none."""
    if isinstance(value, msgspec.UnsetType):
        return None
    try:
        return msgspec.json.decode(value, type=str)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def digest_of(body: bytes | bytearray, algorithm: str) -> str:
    """The body's digest, in hex."""
    return hashlib.new(algorithm, body, usedforsecurity=False).hexdigest()
