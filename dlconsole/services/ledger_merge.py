"""A ledger with one line a task: of several lines with one key the last counts.

All lines are sorted by key, then by when the task ended, then by where they stand: by file name, then by
place. Of each key the last is kept. So it is exact whatever died when, in bounded memory at any size.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final, Generic

from dlconsole.errors import LedgerError
from dlconsole.model import LedgerLine
from dlconsole.services.disk import usage_of
from dlconsole.services.ledger_files import Found, find, sample
from dlconsole.services.ledger_lines import L, Line, LineReader, heads
from dlconsole.services.ledger_sort import RUN_BYTES, Sorter, room
from dlconsole.units import format_bytes

HEAD_BYTES: Final = 55
"""About what `heads` puts before a line."""
STATS_PAYLOAD_BYTES: Final = 80
"""About what is sorted of a line where only numbers are wanted."""
_SAMPLED_FILES: Final = 16
_PIECE: Final = 4096
_PIECE_BYTES: Final = 16 << 20

Payload = Callable[[Sequence[bytes], Sequence[L]], Iterable[bytes]]
"""What is to be kept of lines: of their bytes, or of what they say; without newlines."""


@dataclass(slots=True)
class Watch:
    """Who looks on: `tell` takes the phase, how much of how much is done, and rows so far."""

    stop: threading.Event = field(default_factory=threading.Event)
    tell: Callable[[str, int, int, int], None] = lambda _phase, _done, _total, _rows: None

    def check(self) -> None:
        """Raises KeyboardInterrupt where it is to end."""
        if self.stop.is_set():
            raise KeyboardInterrupt

    def look(self, phase: str, done: int, total: int, rows: int) -> None:
        """Tell, and check."""
        self.check()
        self.tell(phase, done, total, rows)


@dataclass(slots=True)
class Reading:
    """What was read: `bytes` of `files`, in which `lines` were lines of a ledger and `bad` were not. `torn`
    are the files that end without a newline. `tasks` is known when all was merged.
    """

    files: int = 0
    bytes: int = 0
    lines: int = 0
    bad: int = 0
    samples: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    tasks: int = 0

    @property
    def superseded(self) -> int:
        """Lines of tasks that have a later line."""
        return self.lines - self.tasks


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be read, and what that takes: `text_bytes` and `lines` are estimates where a file is
    compressed, `lines` always is. `temp_bytes` is the temporary room, 0 where memory is enough.
    """

    files: int
    bytes: int
    text_bytes: int
    lines: int
    temp_bytes: int


def plan(found: Found, payload_bytes: int | None = None) -> Plan:
    """Estimate, from the beginnings of some files. `payload_bytes` is what a line leaves to be sorted; None:
    the line itself. Raises LedgerError.
    """
    step = max(1, len(found.files) // _SAMPLED_FILES)
    samples = [(file, *sample(file)) for file in found.files[::step]]
    ratios = [ratio for file, _, _, ratio in samples if file.packed]
    if any(file.packed for file in found.files) and not ratios:
        ratios = [sample(next(file for file in found.files if file.packed))[2]]
    text_bytes = int(
        sum(file.size * (sum(ratios) / len(ratios) if file.packed else 1.0) for file in found.files)
    )
    size, count = sum(size for _, size, _, _ in samples), sum(count for _, _, count, _ in samples)
    lines = text_bytes * count // size if size else 0
    sorted_bytes = lines * HEAD_BYTES + (text_bytes if payload_bytes is None else lines * payload_bytes)
    return Plan(len(found.files), found.bytes, text_bytes, lines, room(sorted_bytes, lines))


def check_room(planned: Plan, folder: Path) -> None:
    """Raises LedgerError where the temporary files would not fit into the folder, or it cannot be asked."""
    try:
        free_bytes = usage_of(folder).free_bytes
    except OSError as error:
        raise LedgerError(f"{folder}: {error.strerror}; --temp names another folder") from error
    if free_bytes < planned.temp_bytes:
        need, free = format_bytes(planned.temp_bytes), format_bytes(free_bytes)
        raise LedgerError(
            f"{folder}: {free} free, and sorting takes about {need} there; --temp names another folder"
        )


class Merger(Generic[L]):
    """One merge: first `read`, then `kept`, once each. A context: at its end nothing temporary is left."""

    def __init__(
        self, found: Found, kind: type[L], temp: Path, watch: Watch, run_bytes: int = RUN_BYTES
    ) -> None:
        self._found = found
        self._reader: LineReader[L] = LineReader(kind)
        self._watch = watch
        self._sorter = Sorter(temp, run_bytes, watch.check)
        self.reading = Reading(len(found.files), found.bytes, left_out=list(found.left_out))

    def __enter__(self) -> Merger[L]:
        return self

    def __exit__(self, *exc: object) -> None:
        self._sorter.close()

    def read(self, payload: Payload[L], look: Callable[[Sequence[L]], None] = lambda _lines: None) -> None:
        """Read all lines and sort what `payload` makes of them; `look` is shown them. Raises LedgerError."""
        reading, bad, before = self.reading, self._reader.bad, 0
        for file in self._found.files:
            number = 1
            for block in file.blocks():
                for _ in range(block.overlong):
                    bad.add(f"{file.path} line {number}", "longer than 16 MiB")
                    number += 1
                raws, lines = self._reader.read(block.text, str(file.path), number)
                look(lines)
                ordered = zip(heads(lines, reading.lines), payload(raws, lines), strict=True)
                self._sorter.add([head + body for head, body in ordered])
                number += block.text.count(b"\n")
                reading.lines += len(lines)
                self._watch.look("reading", before + block.position, reading.bytes, reading.lines)
            if file.torn:
                reading.torn.append(str(file.path))
            before += file.size
        reading.bad, reading.samples = bad.count, bad.samples

    def kept(self) -> Iterator[list[bytes]]:
        """What was kept of each task's last line, in the order of keys, in lists that are not long."""
        reading, done = self.reading, 0
        last: list[bytes] | None = None
        for batch in self._sorter.batches():
            for piece in _pieces(batch):
                records = [record.split(b"\0", 2) for record in piece]
                done += len(records)
                if last is not None:
                    records.insert(0, last)
                last = records[-1]
                kept = [one[2] for one, following in pairwise(records) if one[0] != following[0]]
                reading.tasks += len(kept)
                self._watch.look("writing", done, reading.lines, done)
                if kept:
                    yield kept
        if last is not None:
            reading.tasks += 1
            yield [last[2]]


def _pieces(batch: list[bytes]) -> Iterator[list[bytes]]:
    """The batch in parts that are bounded in number and, but for single long records, in bytes."""
    for start in range(0, len(batch), _PIECE):
        yield from _halved(batch[start : start + _PIECE])


def _halved(piece: list[bytes]) -> Iterator[list[bytes]]:
    if len(piece) == 1 or sum(map(len, piece)) <= _PIECE_BYTES:
        yield piece
        return
    half = len(piece) // 2
    yield from _halved(piece[:half])
    yield from _halved(piece[half:])


def raw_lines(raws: Sequence[bytes], _lines: Sequence[LedgerLine]) -> Sequence[bytes]:
    """The payload that is the line itself, byte for byte."""
    return raws


def last_lines(
    stores: Sequence[Path], dataset: str, temp: Path | None = None, watch: Watch | None = None
) -> Iterator[LedgerLine]:
    """The last line of each task of a dataset in these stores, in the order of the source's rows.

    Sorting takes about the ledger's size in `temp` (the system's folder of temporary files) where it does
    not fit into memory. Close the iterator (`contextlib.closing`) if it is not read to its end. Raises
    LedgerError.
    """
    found = find(stores, dataset)
    temp = temp or Path(tempfile.gettempdir())
    check_room(plan(found), temp)
    reader = LineReader(Line)
    with Merger(found, Line, temp, watch or Watch()) as merger:
        merger.read(raw_lines)
        for raws in merger.kept():
            yield from reader.again(raws)
