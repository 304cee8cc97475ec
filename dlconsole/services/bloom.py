"""Which URLs were seen, in bounded room: a Bloom filter in a file, for all lists and runs of one dataset.

Some new URLs, at a rate that is known, are taken for seen ones; a seen one never for a new one, but for those
on their way when a feeder was killed. The file (little-endian):

    0      4096 bytes: the magic line, then JSON with what the filter was made for, then zeros
    4096   4096 bytes: 128 frontiers of 4 numbers of 64 bits: a list (of its id a digest), turn, tasks, time
    8192   the bits

A *frontier* says: bits may be set of this list's first so many tasks. It moves before the bits do. Where
Redis comes back without its last second, its position lies before the frontier, and the tasks between are not
in Redis, whatever their bits say: they are fed unseen. Each number is written by one store into a shared
mapping, and the bits behind it in time, so a feeder that is killed leaves no bit beyond a frontier.
"""

from __future__ import annotations

import fcntl
import json
import math
import mmap
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np

from dlconsole.errors import FeedError
from dlconsole.services.seen import Digests, Mask, keys_of
from dlconsole.settings import Settings, redis_name
from dlconsole.units import format_bytes

MAGIC: Final = b"dlconsole bloom filter 1\n"
_PAGE: Final = 4096
_BITS_AT: Final = 2 * _PAGE
_COUNTED_AT_ONCE: Final = 1 << 20
_FREE: Final = np.uint64(0)
_MOST_REPLAYED: Final = 1_000_000
_TOLERANCE: Final = 1.05
"""Of the error: what rounding the number of hashes makes of it."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a filter was made for, and so its size: `bits`, a multiple of 64, of which a URL has `hashes`."""

    items: int
    error: float
    bits: int
    hashes: int

    @classmethod
    def of(cls, items: int, error: float) -> Shape:
        """The smallest that has this error rate with so many URLs (Bloom 1970)."""
        bits = math.ceil(-items * math.log(error) / math.log(2) ** 2)
        bits = -(-bits // 64) * 64
        return cls(items, error, bits, max(1, round(bits / items * math.log(2))))

    @property
    def file_bytes(self) -> int:
        """The size of its file."""
        return _BITS_AT + self.bits // 8


class Bloom:
    """An open filter; nobody else has it open meanwhile."""

    def __init__(self, path: Path, file: int, shape: Shape, say: Callable[[str], None]) -> None:
        self.path = path
        self._say = say
        self._is_said = False
        self.shape = shape
        self._file = file
        self._map = mmap.mmap(file, shape.file_bytes)
        self._frontiers = np.frombuffer(self._map, "<u8", _PAGE // 8, _PAGE).reshape(-1, 4)
        self._bytes = np.frombuffer(self._map, np.uint8, shape.bits // 8, _BITS_AT)
        self._fill = self._counted()
        self._on_the_way: set[bytes] = set()
        self._replayed: set[bytes] = set()
        """Of those before the frontier the ones that were fed again: among them duplicates can be told."""
        self._list: tuple[np.uint64, int] = (_FREE, 0)
        self._frontier = 0

    @property
    def error(self) -> float:
        """The share of new URLs that is taken for seen ones, by the bits that were set when they were counted
        and the URLs that came since.
        """
        return float(self._fill**self.shape.hashes)

    @property
    def is_over_full(self) -> bool:
        """Whether it has more URLs than it was made for."""
        return self.error > self.shape.error * _TOLERANCE

    def words(self) -> str:
        """What it holds and how often it errs, for a reader; counted anew."""
        self._fill = self._counted()
        urls = -self.shape.bits / self.shape.hashes * math.log1p(-min(self._fill, 1 - 1e-12))
        return (
            f"{self.path}: about {urls:,.0f} URLs of at most {self.shape.items:,}, "
            f"{format_bytes(self.shape.file_bytes)}, {self._fill:.2%} of its bits are set: "
            f"of new URLs {_share(self.error)} would be taken for duplicates"
        )

    def close(self) -> None:
        """Let others have it."""
        del self._frontiers, self._bytes
        self._map.close()
        os.close(self._file)

    # -- what a feeder asks: see `Seen` ------------------------------------------------------------

    def begin(self, list_id: str, turn: int, at: int) -> None:
        """Go on with a list whose first `at` tasks are done; also after a jump."""
        del at
        self._list = (_name(list_id), turn)
        row = self._row()
        self._frontier = 0 if row is None else int(row[2])
        self._replayed.clear()

    def first_ones(self, digests: Digests, at: int) -> Mask:
        """Which of these were not seen before; `at` tasks of the list, at most, lie before the first."""
        is_sure = at >= self._frontier
        new = ~self._has(digests) if is_sure else np.ones(len(digests), bool)
        on_the_way, replayed = self._on_the_way, self._replayed
        for index, key in zip(np.flatnonzero(new).tolist(), keys_of(digests[new]), strict=True):
            if key in on_the_way or key in replayed:
                new[index] = False
            else:
                on_the_way.add(key)
        if not is_sure and len(replayed) < _MOST_REPLAYED:
            replayed.update(keys_of(digests[new]))
        return new

    def confirm(self, digests: Digests, end: int) -> None:
        """These are in Redis; all are of the list's first `end` tasks."""
        if not len(digests):
            return
        if end > self._frontier:
            self._move_frontier(end)
        places = self._places(digests)
        np.bitwise_or.at(self._bytes, places >> np.uint64(3), _masks(places))
        self._fill += (1 - self._fill) * -math.expm1(-places.size / self.shape.bits)
        self._on_the_way.difference_update(keys_of(digests))
        if self.is_over_full and not self._is_said:
            self._is_said = True
            self._say(
                f"warning: {self.path} is over-full: it was made for {self.shape.items:,} URLs, and takes "
                f"{_share(self.error)} of new ones for duplicates now, soon more; stop, raise feed."
                "bloom_items, remove it and go on, or feed without it"
            )

    def forget(self, digests: Digests) -> None:
        """These were not pushed after all."""
        keys = keys_of(digests)
        self._on_the_way.difference_update(keys)
        self._replayed.difference_update(keys)

    def settle(self, list_id: str) -> None:
        """All of this list is on the server's disk: Redis will not come back without it."""
        name = _name(list_id)
        self._frontiers[self._frontiers[:, 0] == name, 0] = _FREE

    # -- its bits ----------------------------------------------------------------------------------

    def _places(self, digests: Digests) -> Digests:
        """Which bits: double hashing (Kirsch and Mitzenmacher 2006). Shape (n, hashes)."""
        steps = np.arange(self.shape.hashes, dtype=np.uint64)
        return (digests[:, :1] + steps * (digests[:, 1:] | np.uint64(1))) % np.uint64(self.shape.bits)

    def _has(self, digests: Digests) -> Mask:
        places = self._places(digests)
        found: Mask = (self._bytes[places >> np.uint64(3)] & _masks(places)).all(axis=1)
        return found

    def _counted(self) -> float:
        words = self._bytes.view("<u8")
        parts = (words[at : at + _COUNTED_AT_ONCE] for at in range(0, len(words), _COUNTED_AT_ONCE))
        return sum(int(np.bitwise_count(part).sum(dtype=np.int64)) for part in parts) / self.shape.bits

    # -- its frontiers -----------------------------------------------------------------------------

    def _row(self) -> Any:
        """The frontier of this list's turn, or None."""
        name, turn = self._list
        found = np.flatnonzero((self._frontiers[:, 0] == name) & (self._frontiers[:, 1] == turn))
        return self._frontiers[found[0]] if len(found) else None

    def _move_frontier(self, end: int) -> None:
        row = self._row()
        if row is not None:
            row[2], row[3] = end, int(time.time())
        else:
            free = np.flatnonzero(self._frontiers[:, 0] == _FREE)
            # The oldest is of a list that nobody went on with, long on disk.
            row = self._frontiers[free[0] if len(free) else int(self._frontiers[:, 3].argmin())]
            row[0] = _FREE
            row[1], row[2], row[3] = self._list[1], end, int(time.time())
            row[0] = self._list[0]
        self._frontier = end


def _name(list_id: str) -> np.uint64:
    return np.uint64(int.from_bytes(sha256(list_id.encode()).digest()[:8], "little") or 1)


def _masks(places: Digests) -> Any:
    return np.uint8(1) << (places & np.uint64(7)).astype(np.uint8)


def _share(rate: float) -> str:
    return f"{rate:.3%}" if rate >= 1e-5 else "fewer than 1 in 100,000"


# -- its file --------------------------------------------------------------------------------------


def open_bloom(settings: Settings, say: Callable[[str], None]) -> Bloom:
    """The dataset's filter, made where there is none. `say` is told where it is not as the settings say.
    Raises FeedError: in use, no filter, cut off, no room.
    """
    path = settings.state_dir / "bloom" / settings.dataset
    wanted = Shape.of(settings.feed.bloom_items, settings.feed.bloom_error)
    about = {"dataset": settings.dataset, "redis": redis_name(settings)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _locked(path)
        try:
            # New, or whoever made it was killed before the header.
            if not os.pread(file, _PAGE, 0).strip(b"\0"):
                _make(file, wanted, about)
            shape, found = _read(path, file)
            bloom = Bloom(path, file, shape, say)
        except BaseException:
            os.close(file)
            raise
    except OSError as error:
        raise FeedError(f"{path}: {error.strerror}") from error
    if (shape.items, shape.error) != (wanted.items, wanted.error):
        say(
            f"warning: {path} was made for {shape.items:,} URLs and an error of {_share(shape.error)}, and "
            "stays so; to have it as set now, remove it: then it knows nothing of what was fed before"
        )
    if found.get("redis") != about["redis"]:
        say(
            f"warning: {path} was filled for another Redis ({found.get('redis')}): what was fed there is not "
            "fed here; remove it, or name another --dataset or state_dir"
        )
    return bloom


def _locked(path: Path) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise FeedError(
            f"{path}: another feeder uses this filter, and only one can: wait for its end, or feed without "
            "--dedupe bloom"
        ) from None
    return file


def _make(file: int, shape: Shape, about: dict[str, str]) -> None:
    """The room first, all of it, so that no later write finds the disk full; the header last."""
    header = MAGIC + json.dumps({**about, "items": shape.items, "error": shape.error}).encode() + b"\n"
    os.ftruncate(file, 0)
    try:
        os.posix_fallocate(file, 0, shape.file_bytes)
        os.pwrite(file, header, 0)
        os.fsync(file)
    except BaseException:
        os.ftruncate(file, 0)
        raise


def _read(path: Path, file: int) -> tuple[Shape, dict[str, Any]]:
    page = os.pread(file, _PAGE, 0)
    size = os.fstat(file).st_size
    anew = "move it away to begin a new one, which knows nothing of what was fed before"
    if not page.startswith(MAGIC):
        raise FeedError(f"{path}: is no Bloom filter of this version; {anew}")
    try:
        found = json.loads(page[len(MAGIC) :].partition(b"\n")[0])
        shape = Shape.of(int(found["items"]), float(found["error"]))
    except (ValueError, KeyError, TypeError, ArithmeticError):
        raise FeedError(f"{path}: its header is no Bloom filter's; {anew}") from None
    if size != shape.file_bytes:
        raise FeedError(
            f"{path}: has {size:,} bytes, where a filter of {shape.items:,} URLs has {shape.file_bytes:,}: "
            f"it was cut off; {anew}"
        )
    return shape, found
