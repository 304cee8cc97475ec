"""The bad rows of a list in a file, one JSON object a line: `{"row": N, "why": …, "data": …}`.

A block's bad rows are written before the block is pushed. What a killed feeder wrote and did not push stands
behind the list's position, and is cut off when somebody goes on from there; so each bad row is in the files
once. A file belongs to one feeder at a time: a second feeder of the same list writes one beside it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from dlconsole.services.items import Reject

_DATA_CHARS: Final = 64 * 1024
"""Most of a row that is written down."""
_MOST_FILES: Final = 100
_ROW: Final = re.compile(rb'\{"row":(\d+),')


class RejectFile:
    """The bad rows of one list; no file where there is none. `say` is told, once, why nothing can be written:
    that ends nothing else.
    """

    def __init__(self, folder: Path, name: str, list_id: str, say: Callable[[str], None]) -> None:
        stem = re.sub(r"[^\w.\-]", "_", name)[:100] or "list"
        self._id = list_id.removeprefix("stream-")[:8]
        self._stem = f"{stem}-{self._id}"
        self._folder = folder
        self._say = say
        self._file: BinaryIO | None = None
        self._is_off = False
        self.path: Path | None = None
        """The file, once there is one of this run."""

    def cut_behind(self, row: int) -> None:
        """Drop what stands behind this row, in every file of this list that nobody writes just now."""
        self._guarded(self._cut_all, row)

    def cut_own_behind(self, row: int) -> None:
        """Drop what this feeder wrote behind this row: others have pushed it, and written it down."""
        if self._file is not None:
            self._guarded(partial(_cut, self._file), row)

    def write(self, rejects: list[Reject]) -> None:
        """Append these."""
        if rejects:
            self._guarded(self._append, rejects)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _guarded(self, call: Callable[..., None], argument: object) -> None:
        if self._is_off:
            return
        try:
            call(argument)
        except OSError as error:
            self._is_off = True
            self._say(
                f"warning: bad rows are not written down: {error.filename or self._folder}: {error.strerror}"
            )

    def _of_this_list(self) -> list[Path]:
        """The files that there are; a list that was moved has them under its earlier name."""
        named = re.compile(rf".*-{self._id}(-\d+)?\.jsonl", re.DOTALL)
        try:
            return sorted(path for path in self._folder.iterdir() if named.fullmatch(path.name))
        except FileNotFoundError:
            return []

    def _cut_all(self, row: int) -> None:
        for path in self._of_this_list():
            if self._file is not None and path == self.path:
                _cut(self._file, row)
                continue
            with path.open("r+b", buffering=0) as file:
                if _lock(file):
                    _cut(file, row)

    def _append(self, rejects: list[Reject]) -> None:
        if self._file is None:
            self._file = self._open()
        size = self._file.seek(0, os.SEEK_END)
        data = b"".join(map(_line, rejects))
        written = 0
        try:
            while written < len(data):
                written += self._file.write(data[written:])
        except OSError:
            self._file.truncate(size)
            raise

    def _open(self) -> BinaryIO:
        self._folder.mkdir(parents=True, exist_ok=True)
        new = [self._stem, *(f"{self._stem}-{number}" for number in range(2, _MOST_FILES))]
        for path in [*self._of_this_list(), *(self._folder / f"{name}.jsonl" for name in new)]:
            file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b", buffering=0)
            if _lock(file):
                self.path = path
                return file
            file.close()
        raise OSError(11, "all of its files are being written by others", str(self._folder / self._stem))


def _lock(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _cut(file: BinaryIO, row: int) -> None:
    """Keep the whole lines up to this row; the file's rows only grow."""
    file.seek(0)
    keep = 0
    with os.fdopen(os.dup(file.fileno()), "rb") as lines:
        for line in lines:
            found = _ROW.match(line)
            if found is None or not line.endswith(b"\n") or int(found[1]) > row:
                break
            keep += len(line)
    if keep < os.fstat(file.fileno()).st_size:
        file.truncate(keep)


def _line(reject: Reject) -> bytes:
    data: Any = reject.data
    if isinstance(data, str) and len(data) > _DATA_CHARS:
        data = data[:_DATA_CHARS] + "…"
    fields = {"row": reject.row, "why": reject.why, "data": data}
    try:
        return msgspec.json.encode(fields, enc_hook=str) + b"\n"
    except (UnicodeEncodeError, RecursionError, TypeError, ValueError):
        fields["data"] = repr(data)[:_DATA_CHARS].encode("utf-8", "backslashreplace").decode()
        return json.dumps(fields).encode() + b"\n"
