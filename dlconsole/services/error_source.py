"""Errors to look at, from the list or from exported files, in blocks; reading changes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import redis

from dlconsole.errors import FeedError
from dlconsole.services import error_items
from dlconsole.services.connection import translated
from dlconsole.services.keys import Keys

BLOCK: Final = 1000
MAX_LINE_BYTES: Final = 16 << 20


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


def file_blocks(path: Path) -> Iterator[list[tuple[int, bytes]]]:
    """The complete lines of an exported file as (number from 0, line); overlong ones are left out.
    Raises FeedError.
    """
    block: list[tuple[int, bytes]] = []
    size = 0
    try:
        with path.open("rb") as file:
            for number, line in _lines(file):
                if line:
                    block.append((number, line))
                    size += len(line)
                if len(block) >= BLOCK or size > MAX_LINE_BYTES:
                    yield block
                    block, size = [], 0
    except OSError as error:
        raise FeedError(f"{path}: {error.strerror}") from error
    if block:
        yield block


def _lines(file: Any) -> Iterator[tuple[int, bytes]]:
    """(number, line without its newline), b'' for an overlong one; a last line without newline is still
    being written, and left out.
    """
    number, overlong = 0, False
    while line := file.readline(MAX_LINE_BYTES):
        if not line.endswith(b"\n"):
            overlong = True
            continue
        yield number, b"" if overlong else line[:-1]
        number, overlong = number + 1, False


def file_id(path: Path) -> str | None:
    """What a file is known by, wherever it is moved or copied: its beginning up to its first task, which
    never changes while the file grows. None where it holds no task. Raises FeedError.
    """
    digest = hashlib.sha256()
    for block in file_blocks(path):
        for _, line in block:
            digest.update(line + b"\n")
            if error_items.parse(line).is_task:
                return digest.hexdigest()[:32]
    return None


def total_bytes(paths: Sequence[Path]) -> int:
    """The size of all files together. Raises FeedError where one is missing or no file."""
    total = 0
    for path in paths:
        if not path.is_file():
            raise FeedError(f"{path}: {'is a folder; name its files' if path.is_dir() else 'no such file'}")
        total += path.stat().st_size
    return total
