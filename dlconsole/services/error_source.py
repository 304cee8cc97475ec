"""Errors to look at, from the list or from exported files, in blocks; reading changes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import redis

from dlconsole.errors import FeedError
from dlconsole.services.connection import translated
from dlconsole.services.keys import Keys

BLOCK: Final = 1000
MAX_LINE_BYTES: Final = 16 << 20
CHUNK: Final = 500
"""Lines that Redis remembers in one set: it keeps up to 512 integers in 8 bytes each, more in about 60."""


def list_length(client: redis.Redis, keys: Keys, url: str) -> int:
    """How many errors are in the list."""
    with translated(url):
        count: Any = client.llen(keys.error)
    return int(count)


def sampled(client: redis.Redis, keys: Keys, url: str, most: int) -> Iterator[list[bytes]]:
    """At most `most` errors of the list; of a longer one, blocks spread evenly from its oldest to its
    newest.
    """
    length = list_length(client, keys, url)
    blocks = -(-min(length, most) // BLOCK)
    for index in range(blocks):
        size = min(BLOCK, min(length, most) - index * BLOCK)
        start = index * BLOCK if length <= most else index * (length - BLOCK) // max(blocks - 1, 1)
        with translated(url):  # from the right: new errors come in on the left
            found: Any = client.lrange(keys.error, -start - size, -start - 1)
        if not found:
            return
        yield list(reversed(found))


class Line(NamedTuple):
    """A line of an exported file, and what it is known by: every byte from the file's beginning to its end.

    So it stays the same line wherever the file is moved or copied, and however it grows; from the line on
    in which two files first differ, their lines are different ones; and equal lines at two places are two.
    `mark` is 64 bits of a digest of all that. `chunk` is 128 other bits of the digest of the first of the
    CHUNK lines among which it is: neither ever depends on what comes later in the file.
    """

    chunk: str
    mark: int
    raw: bytes


class ExportedFile:
    """One exported file, read in blocks. `unfinished` is known behind the last one: whether the last line
    has no newline, because it is still being written or was cut off. Such a line is left out.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.unfinished = False

    def blocks(self) -> Iterator[list[Line]]:
        """Its complete lines; empty and overlong ones are left out. Raises FeedError."""
        block: list[Line] = []
        size = 0
        try:
            with self._path.open("rb") as file:
                for line in self._lines(file):
                    if line.raw:
                        block.append(line)
                        size += len(line.raw)
                    if len(block) >= BLOCK or size > MAX_LINE_BYTES:
                        yield block
                        block, size = [], 0
        except OSError as error:
            raise FeedError(f"{self._path}: {error.strerror}") from error
        if block:
            yield block

    def _lines(self, file: BinaryIO) -> Iterator[Line]:
        """Each complete line, without its newline; an overlong one is empty."""
        number, known, chunk, overlong = 0, b"", "", False
        while piece := file.readline(MAX_LINE_BYTES):
            self.unfinished = not piece.endswith(b"\n")
            if self.unfinished and len(piece) < MAX_LINE_BYTES:
                return  # and not on, should the rest come just now: half a line is no line
            known = hashlib.sha256(known + piece).digest()
            if self.unfinished:
                overlong = True
                continue
            if number % CHUNK == 0:
                chunk = known[8:24].hex()
            mark = int.from_bytes(known[:8], signed=True)
            yield Line(chunk, mark, b"" if overlong else piece[:-1])
            number, overlong = number + 1, False


def total_bytes(paths: Sequence[Path]) -> int:
    """The size of all files together. Raises FeedError where one is missing or no file."""
    total = 0
    for path in paths:
        if not path.is_file():
            raise FeedError(f"{path}: {'is a folder; name its files' if path.is_dir() else 'no such file'}")
        total += path.stat().st_size
    return total
