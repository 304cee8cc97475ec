"""Queue items as tasks. What travels with a task is not taken apart: it goes into the ledger byte for byte.

Others write items as well, so whatever Python's own reader takes for an object is read, in three steps, each
slower and more lenient than the last. What travels on is always JSON that every reader takes: in UTF-8, on
one line, without half a character, nested no deeper than any of them bears.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Final

import msgspec

from dlconsole.model import KEY_DIGITS, Task
from dlconsole.services.objects import read_object

_is_own_key: Final = re.compile(rf"[0-9a-f]{{{KEY_DIGITS}}}-[0-9]{{1,20}}").fullmatch
"""What our feeder writes as `key`. Another one is a column of somebody's, and need not be unique."""
_DIGEST_DIGITS: Final = 32
_MAX_NESTING: Final = 500
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_TASK: Final = msgspec.json.Decoder(Task)
_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TEXT: Final = msgspec.json.Decoder(str)
_ENCODER: Final = msgspec.json.Encoder()
_NO_JSON: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""(A ValidationError is a DecodeError.)"""
_OWN: Final = frozenset({"img_path", "img_url", "key", "caption", "id", "hash", "columns", "_retry"})


def decode_task(raw: bytes) -> Task | None:
    """The task in a list item, or None where the item is not one."""
    try:
        task = _TASK.decode(raw)
    except _NO_JSON:
        pass
    else:
        if _has_only_path_and_url(task) or _is_own(task, raw):
            return task
    task, is_task = _read(raw)
    return task if is_task else None


def left_of(raw: bytes) -> Task:
    """What can be said of an item that is not a task: its path and URL may be '', its key is never."""
    return _read(raw)[0]


def key_of(task: Task) -> str:
    """What a task goes by in the ledger: its own key, or a digest of its path and its URL."""
    return task.key or _digest(f"{task.img_path}\0{task.img_url}".encode())


def task_of(fields: dict[str, Any]) -> Task | None:
    """The task that an object is, or None where it is none; any text can be in it that can be UTF-8."""
    path, url = fields.get("img_path"), fields.get("img_url")
    if not (isinstance(path, str) and isinstance(url, str)):
        return None
    try:
        (path + url).encode()
    except UnicodeEncodeError:
        return None
    return Task(path, url)


def _digest(what: bytes) -> str:
    return hashlib.sha256(what).hexdigest()[:_DIGEST_DIGITS]


def _has_only_path_and_url(task: Task) -> bool:
    """As the items of text lists."""
    unset = msgspec.UNSET
    return not task.key and task.caption is task.columns is task.id is task.hash is unset


def _is_own(task: Task, raw: bytes) -> bool:
    """Whether it is as our feeder writes them."""
    if task.key and not _is_own_key(task.key):
        return False
    # (A copy of its bytes, which is quicker than to look at them in place.)
    if task.columns is not msgspec.UNSET and bytes(task.columns)[0] != ord("{"):
        return False
    return _is_plain(raw)


def _is_plain(raw: bytes) -> bool:
    """Whether every value in it can be put into a line of a file as it is."""
    if ord("\n") in raw or ord("\r") in raw:
        return False
    if len(raw) > 2 * _MAX_NESTING and raw.count(b"[") + raw.count(b"{") > _MAX_NESTING:
        return False
    return raw.isascii() or _is_utf8(raw)


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _read(raw: bytes) -> tuple[Task, bool]:
    """Any item, and whether it is a task. Keys that are none of ours are columns."""
    fields = _fields(raw)
    if fields is None:
        return Task("", "", _digest(raw)), False
    path, url, key = (_text(fields.get(name)) for name in ("img_path", "img_url", "key"))
    is_task = path is not None and url is not None
    fields = {name: _shallow(value) for name, value in fields.items()}
    columns = {name: value for name, value in fields.items() if name not in _OWN}
    if key is None or not _is_own_key(key):
        key = "" if is_task else _digest(raw)
        if "key" in fields:
            columns["key"] = fields["key"]
    if "columns" in fields:
        columns |= _nested(fields["columns"])
    return Task(
        path or "",
        url or "",
        key,
        fields.get("caption", msgspec.UNSET),
        fields.get("id", msgspec.UNSET),
        fields.get("hash", msgspec.UNSET),
        msgspec.Raw(_ENCODER.encode(columns)) if columns else msgspec.UNSET,
        fields.get("_retry", msgspec.UNSET),
    ), is_task


def _nested(columns: msgspec.Raw) -> dict[str, msgspec.Raw]:
    try:
        return _OBJECT.decode(columns)
    except _NO_JSON:  # no object: somebody's own column of that name
        return {"columns": columns}


def _fields(raw: bytes) -> dict[str, msgspec.Raw] | None:
    """The object's values, each as JSON; None where it is no object."""
    if _is_utf8(raw):
        # Inside JSON's strings a newline is never bare, so these stand between tokens.
        line = raw.replace(b"\r", b" ").replace(b"\n", b" ")
        try:
            return _OBJECT.decode(line)
        except _NO_JSON:
            pass
    found = read_object(raw)
    if found is None:
        return None
    fields = {_sound(name): _written(value) for name, value in found.items()}
    for name in ("img_path", "img_url"):
        # One that cannot be UTF-8 is none: nothing is made of it that was not meant.
        if isinstance(found.get(name), str):
            fields[name] = msgspec.Raw(json.dumps(found[name]).encode())
    return fields


def _text(value: msgspec.Raw | None) -> str | None:
    if value is None:
        return None
    try:
        return _TEXT.decode(value)
    except _NO_JSON:
        return None


def _written(value: object) -> msgspec.Raw:
    """A value that only Python's reader takes, for all others: what is no number to them is null."""
    try:
        text = json.dumps(value, ensure_ascii=False)
        if "N" in text or "I" in text:  # NaN, Infinity, or text with such a letter
            text = json.dumps(json.loads(text, parse_constant=lambda _: None), ensure_ascii=False)
    except (ValueError, RecursionError):
        text = "null"
    return msgspec.Raw(_sound(text).encode())


def _sound(text: str) -> str:
    """Text that can be UTF-8: halves of characters, and bytes that were none, become U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _shallow(value: msgspec.Raw) -> msgspec.Raw:
    """A value as it is, or where it is nested too deeply as text."""
    json_bytes = bytes(value)
    if len(json_bytes) <= 2 * _MAX_NESTING or _nesting(json_bytes) <= _MAX_NESTING:
        return value
    return msgspec.Raw(_ENCODER.encode(json_bytes.decode()))


def _nesting(json_bytes: bytes) -> int:
    """How deeply JSON is nested."""
    depth = deepest = 0
    for byte in _STRING.sub(b"", json_bytes):
        if byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest
