"""URL lists → blocks of lines, from any offset on. For now plain text, one URL a line.

Read in chunks, so that memory is flat in the size of the file and of its longest line.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import select
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

from dlconsole.errors import FeedError

CHUNK_BYTES: Final = 1 << 20
_IDLE_S: Final = 0.2
_BOM: Final = b"\xef\xbb\xbf"
_SAMPLES: Final = 18
_SAMPLE_BYTES: Final = 64 * 1024


class _Stopped(Exception):
    """Nobody wants to wait for the stream any longer."""


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive lines without their newlines; `end` is the offset behind them. Behind these,
    `too_long` lines were left out that no limit would have let into memory.
    """

    lines: list[bytes]
    end: int
    too_long: int = 0


@dataclass(frozen=True, slots=True)
class UrlList:
    """An open list. `size` is None for a stream (standard input, a pipe): it can be read only once.

    `id` names its content, so it survives a move, and a second file with equal content is the same list.
    It is a digest of the size and of 18 pieces of 64 KiB: the first, the last, and between them in equal
    steps. So two lists of the same size that differ only between those pieces, which takes more than
    1.1 MiB, are taken for one. A stream has an id of its own each time.
    """

    path: Path
    id: str
    size: int | None
    _file: BinaryIO
    _mtime_ns: int

    def blocks(
        self, *, at: int, lines: int, max_line_bytes: int, idle: Callable[[], bool] = lambda: True
    ) -> Iterator[Block]:
        """Blocks of at most `lines` lines from the offset `at` on, where a line begins; a stream goes on
        where it is, and asks `idle` now and then while it waits: False ends it there. Raises FeedError,
        also where a file is no longer what it was when it was opened.
        """
        try:
            if self.size is not None:
                self._file.seek(at)
            yield from _blocks(partial(self._read, idle), at, lines, max_line_bytes)
            if self._is_changed():
                raise FeedError(
                    f"{self.path}: was changed while it was fed, so it is another list now: look at what "
                    "of it is in the queue before you feed it again"
                )
        except _Stopped:
            return  # without the line that was begun
        except OSError as error:
            raise FeedError(f"{self.path}: {error.strerror}") from error

    def _read(self, idle: Callable[[], bool], at: int) -> bytes:
        if self.size is not None:
            return self._file.read(min(CHUNK_BYTES, self.size - at))
        descriptor = self._file.fileno()
        while not select.select([descriptor], [], [], _IDLE_S)[0]:
            if not idle():
                raise _Stopped
        return os.read(descriptor, CHUNK_BYTES)  # what is there, not until a whole chunk is

    def _is_changed(self) -> bool:
        if self.size is None:
            return False
        found = os.fstat(self._file.fileno())
        if (found.st_size, found.st_mtime_ns) == (self.size, self._mtime_ns):
            return False
        return _content_id(self._file.fileno(), found.st_size) != self.id


@contextmanager
def open_list(path: Path) -> Iterator[UrlList]:
    """Open a list; `-` is standard input. Raises FeedError."""
    if str(path) == "-":
        yield _stream(path, sys.stdin.buffer)
        return
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise FeedError(f"{path}: {error.strerror}") from error
    with file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            yield _stream(path, file)
            return
        try:
            name = _content_id(file.fileno(), found.st_size)
        except OSError as error:
            raise FeedError(f"{path}: {error.strerror}") from error
        yield UrlList(path, name, found.st_size, file, found.st_mtime_ns)


def is_stream(path: Path) -> bool:
    """Whether a list can be read only once."""
    return str(path) == "-" or (path.exists() and not path.is_file())


def total_bytes(paths: list[Path]) -> int | None:
    """The size of all files together; None where one is a stream. Raises FeedError where one is missing."""
    total = 0
    streams = False
    for path in paths:
        if str(path) == "-":
            streams = True
            continue
        try:
            if path.is_dir():
                raise FeedError(f"{path}: is a folder; name its files")
            total += path.stat().st_size
        except OSError as error:
            raise FeedError(f"{path}: {error.strerror}") from error
        streams = streams or not path.is_file()
    return None if streams else total


def _stream(path: Path, file: BinaryIO) -> UrlList:
    return UrlList(path, f"stream-{secrets.token_hex(8)}", None, file, 0)


def _content_id(descriptor: int, size: int) -> str:
    digest = hashlib.sha256(b"%d\n" % size)
    if size <= _SAMPLES * _SAMPLE_BYTES:
        starts = list(range(0, size, _SAMPLE_BYTES))
    else:
        last = size - _SAMPLE_BYTES
        starts = [last * number // (_SAMPLES - 1) for number in range(_SAMPLES)]
    for start in starts:
        digest.update(os.pread(descriptor, _SAMPLE_BYTES, start))
    return digest.hexdigest()


def _blocks(read_at: Callable[[int], bytes], at: int, most: int, max_line_bytes: int) -> Iterator[Block]:
    """`read_at` gives what comes at an offset, nothing at the end. `end` counts what was consumed: whole
    lines, each with its newline.
    """
    rest, cut = b"", 0  # of the last line: what is kept, or how long it is where that is too long
    read = end = said = at
    while chunk := read_at(read):
        read += len(chunk)
        if at == end == 0 and not rest and not cut and chunk.startswith(_BOM):
            chunk, end = chunk[len(_BOM) :], len(_BOM)
        if cut:
            tail, newline, chunk = chunk.partition(b"\n")
            cut += len(tail) + len(newline)
            if not newline:
                continue
            end, cut = end + cut, 0
            said = end
            yield Block([], end, too_long=1)
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        for start in range(0, len(lines), most):
            part = lines[start : start + most]
            end += sum(map(len, part)) + len(part)
            said = end
            yield Block(part, end)
        if len(rest) > max_line_bytes:
            rest, cut = b"", len(rest)
    if read > said:
        yield Block([rest] if rest else [], read, too_long=1 if cut else 0)
