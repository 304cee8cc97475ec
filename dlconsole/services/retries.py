"""When a failed task is tried again, and what its item then carries.

Exponential backoff with full jitter (Brooker, "Exponential Backoff And Jitter", 2015): the n-th delay
is drawn from 0 to `base * 2**(n-1)`. A server's Retry-After is the least that is waited, up to a cap.
"""

from __future__ import annotations

import random
from typing import Any, Final

from dlconsole.model import STATUS_NONE, Failure
from dlconsole.services.objects import read_object, write_object
from dlconsole.settings import RetrySettings

HISTORY: Final = "_retry"
_MARK: Final = b', "_retry": {'


def attempts_of(raw: bytes) -> int | None:
    """How often an item was tried before, by its own history; 0 where it has none that is sound. None
    where it cannot be read at all: its history would only grow, so it is not to be tried again.
    """
    if b'"_retry"' not in raw:
        return 0
    fields = read_object(raw)
    if fields is None:
        return None
    history = fields.get(HISTORY)
    attempts = history.get("n") if isinstance(history, dict) else None
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
    return body[:-1] + joint + write_object({HISTORY: history})[1:]


def _requeued(body: bytes) -> dict[str, Any]:
    """The part of a history that retries keep: how often a person put the task back into the queue."""
    history = (read_object(body) or {}).get(HISTORY)
    return {"requeued": history["requeued"]} if isinstance(history, dict) and "requeued" in history else {}


def without_history(body: bytes) -> bytes:
    """The item as it was before its history, which we put last, was added; where somebody moved it,
    the item is written anew.
    """
    fields = read_object(body)
    if fields is None or fields.pop(HISTORY, None) is None:
        return body
    head = body[: body.rfind(_MARK)] + b"}"
    if _MARK in body and read_object(head) == fields:
        return head
    return write_object(fields)
