"""Which URLs were seen: 16 bytes of each one's SHA-256, as two numbers of 64 bits; exact, for one list.

They lie in a table of a file that has no name any more, so that memory stays flat and nothing is left behind:
at most half of its slots are taken, so it has 32 to 64 bytes a URL. A block is looked up at once, by numpy:
about 1 µs a URL, where an LMDB takes 2.5.
"""

from __future__ import annotations

import mmap
import os
import re
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from dlconsole.errors import FeedError

Digests = NDArray[np.uint64]
"""Shape (n, 2)."""
Mask = NDArray[np.bool_]

_URL: Final = re.compile(rb'"img_url": ?"([^"\\]*)(.)')
_SLOTS: Final = 1 << 16
_MOVED_AT_ONCE: Final = 1 << 16


def digests_of(items: Sequence[bytes]) -> Digests:
    """The digests of tasks, as `TaskWriter` and `RowWriter` make them, by their URLs."""
    found = []
    for item in items:
        match = _URL.search(item)
        assert match is not None, "an item without a URL"
        url = match[1] if match[2] == b'"' else _unescaped(item)
        found.append(sha256(url).digest()[:16])
    return np.frombuffer(b"".join(found), dtype="<u8").reshape(-1, 2)


def _unescaped(item: bytes) -> bytes:
    url: str = msgspec.json.decode(item)["img_url"]
    return url.encode("utf-8", "surrogatepass")


class Seen(Protocol):
    """What a feeder asks. Of a block it is told which tasks are the first with their URL; these count as seen
    at once. Later it says which of them Redis has, and which were not pushed after all.
    """

    def begin(self, list_id: str, turn: int, at: int) -> None:
        """Go on with a list whose first `at` tasks are done; also after a jump."""

    def first_ones(self, digests: Digests, at: int) -> Mask:
        """Which of these were not seen before; `at` tasks of the list, at most, lie before the first."""

    def confirm(self, digests: Digests, end: int) -> None:
        """These are in Redis; all are of the list's first `end` tasks."""

    def forget(self, digests: Digests) -> None:
        """These are not."""


class SeenInList:
    """Exact, of one list, in a file of `folder`. Raises FeedError where that cannot be written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._forgotten: set[bytes] = set()
        self.reset()

    def close(self) -> None:
        """Give the room back."""
        del self._table
        self._map.close()

    def reset(self) -> None:
        """Nothing was seen."""
        self._forgotten.clear()
        self._used = 0
        self._make_table(_SLOTS)

    def begin(self, list_id: str, turn: int, at: int) -> None:
        """As the protocol says; what lies before is `learn`'s matter."""

    def learn(self, digests: Digests) -> None:
        """These were seen before this run."""
        self.first_ones(digests, 0)

    def first_ones(self, digests: Digests, at: int) -> Mask:
        """As the protocol says."""
        del at
        keys = np.stack((digests[:, 0], np.maximum(digests[:, 1], 1)), axis=1)  # 0 is a free slot
        if (self._used + len(keys)) * 2 > len(self._table):
            self._grow(len(keys))
        new = self._put(keys)
        self._used += int(new.sum())
        if self._forgotten:
            for index, key in zip(np.flatnonzero(~new).tolist(), keys_of(digests[~new]), strict=True):
                if key in self._forgotten:
                    self._forgotten.remove(key)
                    new[index] = True
        return new

    def confirm(self, digests: Digests, end: int) -> None:
        """As the protocol says."""

    def forget(self, digests: Digests) -> None:
        """As the protocol says. They stay in the table, and are remembered beside it."""
        self._forgotten.update(keys_of(digests))

    def _put(self, keys: Digests) -> Mask:
        """Put those that are not there; which these are. Of equal ones the first is."""
        table, last_slot = self._table, np.uint64(len(self._table) - 1)
        new = np.zeros(len(keys), bool)
        todo = np.arange(len(keys))
        slots = keys[:, 0] & last_slot
        while len(todo):
            free = np.flatnonzero(table[slots, 1] == 0)
            if len(free):
                taken, firsts = np.unique(slots[free], return_index=True)
                winners = free[firsts]
                table[taken] = keys[winners]
                new[todo[winners]] = True
            left = np.flatnonzero((table[slots] != keys).any(axis=1))
            todo, keys, slots = todo[left], keys[left], (slots[left] + np.uint64(1)) & last_slot
        return new

    def _grow(self, more: int) -> None:
        slots = len(self._table)
        while (self._used + more) * 2 > slots:
            slots *= 2
        old, old_map = self._table, self._map
        self._make_table(slots)
        for start in range(0, len(old), _MOVED_AT_ONCE):
            part = old[start : start + _MOVED_AT_ONCE]
            self._put(part[part[:, 1] != 0])
        del old, part
        old_map.close()

    def _make_table(self, slots: int) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._folder) as file:
                # Room that is really there: a full disk would end the process at some later write.
                os.posix_fallocate(file.fileno(), 0, slots * 16)
                self._map = mmap.mmap(file.fileno(), slots * 16)
        except OSError as error:
            raise FeedError(
                f"{self._folder}: {error.strerror}: no room for the table of URLs that --dedupe file needs "
                f"({slots * 16 >> 20} MiB); name another folder with --temp"
            ) from error
        self._table: Digests = np.frombuffer(self._map, dtype="<u8").reshape(slots, 2)


def keys_of(digests: Digests) -> list[bytes]:
    """Each digest's bytes, for a set."""
    raw = digests.tobytes()
    return [raw[at : at + 16] for at in range(0, len(raw), 16)]
