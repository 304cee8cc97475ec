"""URL lists → blocks of lines. For now plain text, one URL a line.

Read in chunks, so that memory is flat in the size of the file and of its longest line.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from dlconsole.errors import FeedError

CHUNK_BYTES: Final = 1 << 20
_BOM: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive lines without their newlines. `position` is the file's offset behind the chunk that
    they came from, for a progress bar. `too_long` counts lines that were cut off and left out.
    """

    lines: list[bytes]
    position: int
    too_long: int = 0


def read_lines(path: Path, *, max_line_bytes: int) -> Iterator[Block]:
    """The lines of a text file; `-` is standard input. Raises FeedError."""
    try:
        if str(path) == "-":
            yield from _blocks(sys.stdin.buffer, max_line_bytes)
        else:
            with path.open("rb", buffering=0) as file:
                yield from _blocks(file, max_line_bytes)
    except OSError as error:
        raise FeedError(f"{path}: {error.strerror}") from error


def total_bytes(paths: list[Path]) -> int | None:
    """The size of all files together; None where one is a pipe. Raises FeedError where one is missing."""
    total = 0
    for path in paths:
        if str(path) == "-":
            return None
        try:
            if path.is_dir():
                raise FeedError(f"{path}: is a folder; name its files")
            size = path.stat().st_size
        except OSError as error:
            raise FeedError(f"{path}: {error.strerror}") from error
        if not path.is_file():
            return None
        total += size
    return total


def _blocks(file: BinaryIO, max_line_bytes: int) -> Iterator[Block]:
    rest = b""
    position = 0
    skipping = False  # inside a line that is too long
    while chunk := file.read(CHUNK_BYTES):
        if position == 0 and chunk.startswith(_BOM):
            chunk, position = chunk[len(_BOM) :], len(_BOM)
        position += len(chunk)
        too_long = 0
        if skipping:
            _, newline, chunk = chunk.partition(b"\n")
            skipping = not newline
            if skipping:
                continue
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        if len(rest) > max_line_bytes:
            rest, skipping, too_long = b"", True, 1
        yield Block(lines, position, too_long)
    if rest:
        yield Block([rest], position)
