"""One error item: what it says, the line it becomes in a file, the task it becomes again.

Items of legacy workers are in the same list: they can be empty, not JSON, without a status.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from dlconsole.model import STATUS_NONE, FailureKind
from dlconsole.services.objects import SENTINEL, is_json, read_object, write_object
from dlconsole.services.retries import HISTORY, without_history
from dlconsole.services.tasks import task_of

NO_ANSWER: Final = "no_answer"
BAD_BODY: Final = "bad_body"
UNKNOWN: Final = "unknown"
NOT_JSON: Final = "not_json"
KINDS: Final = (*(kind.value for kind in FailureKind), NO_ANSWER, BAD_BODY, UNKNOWN, NOT_JSON)
"""Every kind an error can be counted as. The last four are for legacy items, by their status: none came
(900), one came that is no error (so the body was wrong, or the task succeeded in truth), there is no
status at all, the item is not a JSON object.
"""

_OURS: Final = frozenset(kind.value for kind in FailureKind)
_MARK: Final = b', "status": '
_SAYS_WHAT_FAILED: Final = frozenset({"img_path", "img_url", "status", "error_msg"})


@dataclass(frozen=True, slots=True)
class ErrorItem:
    """What an error item says. `fields` is None where it is no JSON object; `status` None where it has
    none; `url` '' where it is no task.
    """

    raw: bytes
    fields: dict[str, Any] | None
    kind: str
    status: int | None
    url: str

    @property
    def host(self) -> str:
        """The host of its URL, in lower case; '' where there is none."""
        try:
            return urlsplit(self.url).hostname or ""
        except ValueError:
            return ""

    @property
    def is_task(self) -> bool:
        """Whether it can be tried again."""
        return bool(self.url)


def parse(raw: bytes) -> ErrorItem:
    """Any item of the error list, or any line of an exported file."""
    fields = read_object(raw)
    if fields is None:
        return ErrorItem(raw, None, NOT_JSON, None, "")
    task = task_of(fields)
    status = _status(fields.get("status"))
    kind = _kind(fields.get("error_msg"), status)
    return ErrorItem(raw, fields, kind, status, "" if task is None else task.img_url)


def _status(value: object) -> int | None:
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdecimal():
        value = int(value[:9])
    return value if type(value) is int else None


def _kind(message: object, status: int | None) -> str:
    if isinstance(message, str):
        kind = message.partition(":")[0]
        if kind in _OURS:
            return kind
    if status is None:
        return UNKNOWN
    if status == STATUS_NONE:
        return NO_ANSWER
    return BAD_BODY if 200 <= status < 400 else FailureKind.HTTP_STATUS.value


def is_sentinel(raw: bytes) -> bool:
    """Whether it is a legacy stop sentinel that got among the errors, not an error that has its text.

    In doubt it is an error: a sentinel too many in a file does no harm, an error that is dropped is lost.
    """
    if SENTINEL not in raw:
        return False
    fields = read_object(raw)
    if fields is None:
        return raw.strip(b" \t\r\n\"'") == SENTINEL
    return fields.keys().isdisjoint(_SAYS_WHAT_FAILED)


def lines(items: Iterable[bytes]) -> list[bytes]:
    """The lines of an exported file, newlines included; sentinels drop.

    What Python's reader takes for JSON stays byte for byte, but for newlines between its tokens, which
    become spaces; anything else is wrapped as `{"raw": …}`, bytes that are not UTF-8 as backslash escapes.
    """
    return [_line(raw) for raw in items if not is_sentinel(raw)]


def _line(raw: bytes) -> bytes:
    if not is_json(raw):
        return write_object({"raw": raw.decode("utf-8", "backslashreplace")}) + b"\n"
    # Inside JSON's strings a newline is never bare, so these stand between tokens.
    return raw.replace(b"\r", b" ").replace(b"\n", b" ") + b"\n"


def task_again(error: ErrorItem) -> bytes:
    """The queue item of an error that `is_task`: its own bytes, with the failure moved into its history.

    The history says 0 attempts, so that it is tried as often as a new task; `requeued` counts how often
    it came back so.
    """
    fields = error.fields or {}
    before = fields.get(HISTORY)
    times = before.get("requeued") if isinstance(before, dict) else 0
    history: dict[str, Any] = {"n": 0}
    history |= {name: fields[name] for name in ("status", "error_msg") if name in fields}
    history["requeued"] = (times if type(times) is int and 0 <= times < 10**6 else 0) + 1
    body = without_history(_without_failure(error.raw.strip(), fields))
    joint = b"" if body == b"{}" else b", "
    return body[:-1] + joint + write_object({HISTORY: history})[1:]


def _without_failure(body: bytes, fields: dict[str, Any]) -> bytes:
    """The item before `status` and `error_msg`, which we put last, were added; else written anew."""
    kept = {name: value for name, value in fields.items() if name not in {"status", "error_msg"}}
    if len(kept) == len(fields):
        return body
    head = body[: body.rfind(_MARK)] + b"}"
    if _MARK in body and read_object(head) == kept:
        return head
    return write_object(kept)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which errors are meant: each non-empty tuple must hold the item's value; hosts also match their
    subdomains.
    """

    kinds: Sequence[str] = ()
    statuses: Sequence[int] = ()
    hosts: Sequence[str] = ()

    def matches(self, error: ErrorItem) -> bool:
        """Whether `error` is one of them."""
        if self.kinds and error.kind not in self.kinds:
            return False
        if self.statuses and error.status not in self.statuses:
            return False
        return not self.hosts or any(
            error.host == host or error.host.endswith("." + host) for host in self.hosts
        )
