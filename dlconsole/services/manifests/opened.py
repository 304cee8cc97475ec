"""Opening a list: its identity first, its columns and rows when they are wanted."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from dlconsole.errors import FeedError
from dlconsole.services.manifests.lines import line_blocks
from dlconsole.services.manifests.origins import FileOrigin, Origin, StreamOrigin
from dlconsole.services.manifests.places import STANDARD_INPUT, Format, Place, Remote, format_of
from dlconsole.services.manifests.rows import Block, Header, Idle, RowReader, Stopped, Unreadable
from dlconsole.services.manifests.text import Text

_CHANGED: Final = (
    "was changed while it was fed, so it is another list now: look at what of it is in the queue before you "
    "feed it again"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """How a list is read: rows a block, most bytes of a line of plain text and of another format's row."""

    rows: int = 2000
    line_bytes: int = 8192
    row_bytes: int = 1 << 20


@dataclass(frozen=True, slots=True)
class Reading:
    """What is known of a list beforehand: its format, '' as its name says, else `fallback`; the names of its
    columns where it has no header.
    """

    format: str = ""
    fallback: str = ""
    names: tuple[str, ...] = ()


class UrlList:
    """An open list. `id` names its content and its format. A stream (standard input, a pipe, some URLs) can
    be read only once; it has an id of its own each time.

    `size` is where its positions end, known beforehand only of a file of plain text: there a position is the
    byte offset behind a line.
    """

    def __init__(
        self, place: Place, kind: Format, origin: Origin, limits: Limits, reading: Reading | None = None
    ) -> None:
        self.path = place
        self.format = kind
        self.is_stream = origin.is_stream
        is_plain_file = isinstance(origin, FileOrigin) and str(kind) == "txt"
        self.size = origin.size if is_plain_file else None
        self.id = origin.id
        if str(kind) != "txt" and not self.is_stream:
            self.id = hashlib.sha256(f"{kind}\n{origin.id}".encode()).hexdigest()
        self._origin = origin
        self._limits = limits
        self._reading = reading or Reading()
        self._text = Text(origin, kind.packing)
        self._reader: RowReader | None = None
        self._resources = ExitStack()

    @property
    def has_columns(self) -> bool:
        """Whether it has more than URLs, one a line."""
        return self.format.rows != "txt"

    @property
    def raw_bytes(self) -> int | None:
        """Its size as it lies there; None where that is not known."""
        return self._origin.size

    @property
    def raw_at(self) -> int:
        """How many of these bytes are read, nearly: for showing progress."""
        share: float | None = getattr(self._reader, "share_read", None)
        return self._origin.at if share is None else round(share * (self._origin.size or 0))

    def header(self, idle: Idle = lambda: True) -> Header:
        """Its columns; not for plain text. Raises FeedError, Stopped."""
        with self._named_errors():
            return self._opened_reader(idle).header(idle)

    def blocks(
        self, *, at: int = 0, idle: Idle = lambda: True, names: frozenset[str] | None = None
    ) -> Iterator[Block]:
        """Blocks from the position `at` on, which is 0 or the end of a block; a stream goes on where it is.
        A list that is waited for asks `idle` now and then: False ends it there. `names` are the columns that
        are of use, None for all. Raises FeedError, also where a file is no longer what it was when it was
        opened.
        """
        end = at
        try:
            with self._named_errors():
                for block in self._blocks(at, idle, names):
                    end = block.end
                    yield block
                if self._origin.is_changed():
                    raise Unreadable(_CHANGED)
        except Stopped:
            return  # without the line that was begun
        if self.size is None and not self.is_stream:
            yield Block([], end, done=True)

    def close(self) -> None:
        """Give back what it holds."""
        self._resources.close()
        self._origin.close()

    def _blocks(self, at: int, idle: Idle, names: frozenset[str] | None) -> Iterator[Block]:
        limits = self._limits
        if self.has_columns:
            yield from self._opened_reader(idle).blocks(at, limits.rows, idle, names)
            return
        if not self.is_stream:
            self._text.seek(at, idle)
        yield from line_blocks(lambda: self._text.read(idle), at, limits.rows, limits.line_bytes, idle)

    def _opened_reader(self, idle: Idle) -> RowReader:
        if self._reader is None:
            self._reader = self._new_reader(idle)
        return self._reader

    def _new_reader(self, idle: Idle) -> RowReader:
        # Each only where it is needed: a feed of plain text loads none of them.
        kind, most = self.format.rows, self._limits.row_bytes
        if kind == "parquet":
            from dlconsole.services.manifests.parquet_rows import ParquetRows  # noqa: PLC0415

            return ParquetRows(self._seekable(idle), max_row_bytes=most)
        if kind in {"json", "jsonl"}:
            from dlconsole.services.manifests.json_rows import JsonLines, JsonRows  # noqa: PLC0415

            return (JsonRows if kind == "json" else JsonLines)(self._text, max_row_bytes=most)
        from dlconsole.services.manifests.separated import SeparatedRows  # noqa: PLC0415

        reading = self._reading
        return SeparatedRows(
            self._text,
            kind=kind,
            max_row_bytes=most,
            preset_names=reading.names,
            is_told=bool(reading.format),
        )

    def _seekable(self, idle: Idle) -> int:
        """The descriptor of a file with its bytes: its own, or a copy without a name."""
        if isinstance(self._origin, FileOrigin) and not self.format.packing:
            return self._origin.fileno()
        copy = self._resources.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        while data := self._text.read(idle):
            copy.write(data)
        copy.flush()
        return copy.fileno()

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except Unreadable as error:
            raise FeedError(f"{self.path}: {error}") from error
        except OSError as error:
            raise FeedError(f"{self.path}: {error.strerror or error}") from error


@contextmanager
def open_list(
    place: Place, limits: Limits | None = None, reading: Reading | None = None, idle: Idle = lambda: True
) -> Iterator[UrlList]:
    """Open a list; `-` is standard input. Raises FeedError, Stopped."""
    reading = reading or Reading()
    kind = format_of(place, reading.format, reading.fallback)
    try:
        origin = _origin(place, kind, idle)
    except Unreadable as error:
        raise FeedError(f"{place}: {error}") from error
    except OSError as error:
        raise FeedError(f"{place}: {error.strerror}") from error
    found = UrlList(place, kind, origin, limits or Limits(), reading)
    try:
        yield found
    finally:
        found.close()


def _origin(place: Place, kind: Format, idle: Idle) -> Origin:
    if isinstance(place, Remote):
        from dlconsole.services.manifests.remote import RemoteOrigin  # noqa: PLC0415  (loads requests)

        return RemoteOrigin(place, idle, may_be_gzip=kind.packing == "gz")
    if place == STANDARD_INPUT:
        return StreamOrigin(sys.stdin.buffer, is_ours=False)
    file = _opened(place)
    try:
        is_file = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        return FileOrigin(file) if is_file else StreamOrigin(file, is_ours=True)
    except BaseException:
        file.close()
        raise


def _opened(path: Path) -> BinaryIO:
    return path.open("rb", buffering=0)
