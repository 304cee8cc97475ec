"""When a failed task is tried again, and what its item then carries.

Exponential backoff with full jitter (Brooker, "Exponential Backoff And Jitter", 2015): the n-th delay
is drawn from 0 to `base * 2**(n-1)`. A server's Retry-After is the least that is waited, up to a cap.
"""

from __future__ import annotations

import json
import random
from typing import Any, Final

import msgspec

from dlconsole.model import STATUS_NONE, Failure
from dlconsole.settings import RetrySettings

HISTORY: Final = "_retry"
_MARK: Final = b', "_retry": {'
_OBJECT: Final = msgspec.json.Decoder(dict[str, Any])


def attempts_of(raw: bytes) -> int:
    """How often an item was tried before, by its own history; 0 where it has none that is sound."""
    if b'"_retry"' not in raw:
        return 0
    try:
        attempts = _OBJECT.decode(raw)[HISTORY]["n"]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
        return 0
    return attempts if type(attempts) is int and 0 <= attempts < 1000 else 0


def delay_s(attempt: int, failure: Failure, settings: RetrySettings) -> float:
    """How long to wait after the `attempt`-th attempt (from 1) failed."""
    most = min(settings.max_s, settings.base_s * 2 ** min(attempt - 1, 30))
    drawn = random.uniform(0, most)  # noqa: S311
    return max(drawn, min(failure.retry_after_s or 0.0, settings.retry_after_s))


def with_history(raw: bytes, attempt: int, failure: Failure) -> bytes:
    """The item with its history: how often it was tried, and how the last time ended. The task's own
    bytes stay as they are.
    """
    status = STATUS_NONE if failure.status is None else failure.status
    history: dict[str, Any] = {
        "n": attempt,
        "status": status,
        "error_msg": f"{failure.kind}: {failure.message}",
    }
    body = raw.strip()
    if HISTORY.encode() in body:
        history |= _requeued(body)
        body = without_history(body)
    joint = b"" if body == b"{}" else b", "
    return body[:-1] + joint + json.dumps({HISTORY: history}).encode()[1:]


def _requeued(body: bytes) -> dict[str, Any]:
    """The part of a history that retries keep: how often a person put the task back into the queue."""
    try:
        history = _OBJECT.decode(body)[HISTORY]
        return {"requeued": history["requeued"]} if "requeued" in history else {}
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
        return {}


def without_history(body: bytes) -> bytes:
    """The item as it was before its history, which we put last, was added; where somebody moved it,
    the item is written anew.
    """
    head = body[: body.rfind(_MARK)] + b"}"
    try:
        fields = _OBJECT.decode(body)
        had = fields.pop(HISTORY, None)
        if had is None:
            return body
        if _MARK in body and _OBJECT.decode(head) == fields:
            return head
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body
    return json.dumps(fields).encode()
