"""The files of a ledger: which there are, and their complete lines.

A ledger lies in `<store>/<dataset>/ledger/`: one `*.jsonl` or more a worker session, some of them perhaps
compressed since (`*.jsonl.gz`, `*.jsonl.zst`). Workers may write while it is read: of each file what it held
when the reading began counts, up to the last newline.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, Protocol

from dlconsole.errors import LedgerError
from dlconsole.services.unpack import Damaged, Packed, unpacker

CHUNK_BYTES: Final = 1 << 20
MAX_LINE_BYTES: Final = 16 << 20
"""A longer line is no line of a ledger: a worker takes no item of that size."""
_PACKED_CHUNK: Final = 64 * 1024
_SUFFIXES: Final = (".jsonl", ".jsonl.gz", ".jsonl.zst")


class _Reads(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Block(NamedTuple):
    """Whole lines with their newlines. `position` is how far the file was read for them, in bytes of the file
    as it lies there; `overlong` lines were left out before them.
    """

    text: bytes
    position: int
    overlong: int = 0


@dataclass(slots=True)
class LedgerFile:
    """One file as it was when it was found. `torn` is known behind the last block: whether something without
    a newline followed, because it is still being written or was cut off.
    """

    path: Path
    size: int
    torn: bool = False

    @property
    def name(self) -> str:
        """What decides between two lines of one task that ended in the same millisecond."""
        return plain_name(self.path.name)

    @property
    def packed(self) -> bool:
        """Whether it is compressed."""
        return self.path.suffix != ".jsonl"

    def blocks(self, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Block]:
        """Its complete lines, in blocks of about a megabyte. Raises LedgerError."""
        try:
            with self.path.open("rb", buffering=0) as file, _unpacked(file, self.path, self.size) as source:
                yield from self._blocks(source, file, chunk_bytes)
        except FileNotFoundError as error:
            raise LedgerError(
                f"{self.path}: is gone since the reading began (compressed? moved?): run the command again"
            ) from error
        except OSError as error:
            raise LedgerError(f"{self.path}: {error.strerror or error}") from error

    def _blocks(self, source: _Reads, file: BinaryIO, chunk_bytes: int) -> Iterator[Block]:
        rest, cut, overlong = b"", False, 0
        while chunk := source.read(chunk_bytes):
            if cut:  # inside an overlong line: up to its end nothing counts
                _, newline, chunk = chunk.partition(b"\n")
                if not newline:
                    continue
                cut, overlong = False, overlong + 1
            end = chunk.rfind(b"\n") + 1
            if end:
                yield Block(rest + chunk[:end], file.tell(), overlong)
                rest, overlong = chunk[end:], 0
            else:
                rest += chunk
            if len(rest) > MAX_LINE_BYTES:
                rest, cut = b"", True
        if overlong:
            yield Block(b"", file.tell(), overlong)
        self.torn = bool(rest) or cut


@dataclass(frozen=True, slots=True)
class Found:
    """A ledger's files, in the order that decides between lines of the same time: by name. `left_out` says
    which were not taken, and why.
    """

    files: tuple[LedgerFile, ...]
    left_out: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """The size of all files together, as they lie there."""
        return sum(file.size for file in self.files)


def find(stores: Sequence[Path], dataset: str) -> Found:
    """The files of a dataset's ledger in these stores. Raises LedgerError where one of them has none: a
    store that is not mounted must not make a table smaller.
    """
    paths: list[Path] = []
    for store in stores:
        folder = store / dataset / "ledger"
        if not folder.is_dir():
            raise LedgerError(f"{folder}: there is no ledger; {_advice(store)}")
        here = [path for path in _listed(folder) if _is_ledger(path)]
        if not here:
            raise LedgerError(f"{folder}: holds no *.jsonl, so no worker has written there yet")
        paths += here
    return of_files(paths)


def of_files(paths: Sequence[Path]) -> Found:
    """These files as a ledger. Raises LedgerError where one is missing or has another kind of name."""
    known: set[tuple[int, int]] = set()
    files: list[LedgerFile] = []
    left_out: list[str] = []
    named = set(paths)
    for path in sorted(paths, key=lambda path: plain_name(path.name)):  # stable: stores stay in their order
        if not _is_ledger(path):
            raise LedgerError(f"{path}: is no file of a ledger: their names end in {', '.join(_SUFFIXES)}")
        try:
            found = path.stat()
        except OSError as error:
            raise LedgerError(f"{path}: {error.strerror}") from error
        if not path.is_file():
            raise LedgerError(f"{path}: is no file")
        if (found.st_dev, found.st_ino) in known:
            left_out.append(f"{path}: is a file that was named before")
        elif path.suffix != ".jsonl" and path.with_name(plain_name(path.name)) in named:
            left_out.append(f"{path}: {plain_name(path.name)} lies beside it, and is read instead")
        else:
            known.add((found.st_dev, found.st_ino))
            files.append(LedgerFile(path, found.st_size))
    return Found(tuple(files), tuple(left_out))


def plain_name(name: str) -> str:
    """A file's name without what says how it is compressed."""
    return name.removesuffix(".gz").removesuffix(".zst")


def _is_ledger(path: Path) -> bool:
    """Hidden files are those that are being written (by `merge`, by a copy)."""
    return path.name.endswith(_SUFFIXES) and not path.name.startswith(".")


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise LedgerError(f"{folder}: {error.strerror}") from error


def _advice(store: Path) -> str:
    try:
        datasets = sorted(path.parent.name for path in store.glob("*/ledger") if path.is_dir())
    except OSError:
        datasets = []
    if datasets:
        return f"--dataset names one of those that have: {', '.join(datasets[:20])}"
    return "--store names the folder that workers write to (their own --store), --dataset what they worked on"


@contextmanager
def _unpacked(file: BinaryIO, path: Path, size: int) -> Iterator[_Reads]:
    """What reads the file's text. A compressed file must be whole: what is cut off there was written once."""
    try:
        if path.suffix == ".gz":
            yield _Packed(file, "gz")
        elif path.suffix == ".zst":
            yield _Packed(file, "zst")
        else:
            yield _Plain(file, size)
    except Damaged as error:
        raise LedgerError(
            f"{path}: is damaged or not whole ({error}): unpack what can be read into a .jsonl beside it "
            f"({'zstd' if path.suffix == '.zst' else 'gzip'} -dc), and move it out of the folder"
        ) from error


class _Plain:
    """What a file held when it was found, however it grows."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int, /) -> bytes:
        found = self._file.read(min(size, self._left))
        self._left -= len(found)
        return found


class _Packed:
    """What a compressed file holds."""

    def __init__(self, file: BinaryIO, packing: Packed) -> None:
        self._file = file
        self._unpacker = unpacker(packing)
        self._rest = b""

    def read(self, _size: int, /) -> bytes:
        """Up to a megabyte or two, nothing only at the end. Raises Damaged."""
        while packed := self._rest or self._file.read(_PACKED_CHUNK):
            text = self._unpacker.unpack(packed)
            self._rest = self._unpacker.take_rest()
            if text:
                return text
        if not self._unpacker.is_whole:
            raise Damaged("it ends inside packed data")
        return b""


def sample(file: LedgerFile) -> tuple[int, int, float]:
    """Of the file's beginning, a megabyte or more: bytes of text, lines, and how many bytes of text a byte of
    the file holds. Of less, what is read ahead of a compressed file's text would tell too little.
    """
    size = lines = 0
    ratio = 1.0
    for block in file.blocks(CHUNK_BYTES // 16):
        size += len(block.text)
        lines += block.text.count(b"\n")
        if file.packed and block.position:
            ratio = max(1.0, size / min(block.position, file.size))
        if size >= CHUNK_BYTES:
            break
    return size, lines, ratio
