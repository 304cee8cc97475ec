"""A file that appears when it is whole: written beside its place, then renamed."""

from __future__ import annotations

import gzip
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from dlconsole.errors import LedgerError, UsageError

_GZIP_LEVEL: Final = 6
_ZSTD_LEVEL: Final = 3


def check_output(path: Path, *, force: bool) -> None:
    """Raises UsageError where something is there already, or the place cannot be one."""
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent}: there is no such folder")
    if os.path.lexists(path) and not force:
        raise UsageError(f"{path}: is there already; --force replaces it")


@contextmanager
def output(path: Path, *, force: bool) -> Iterator[IO[bytes]]:
    """The file to write to; compressed where its name ends in .gz or .zst. Left without an exception, it is
    on the disk under its name; else nothing of it is left. Raises UsageError, LedgerError.
    """
    check_output(path, force=force)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as file:
            try:
                with _packed(file, path) as packed:
                    yield packed
                file.flush()
                os.fsync(file.fileno())
                check_output(path, force=force)
                os.replace(part, path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise LedgerError(f"{path}: {error.strerror or error}; nothing of it is left") from error


@contextmanager
def _packed(file: IO[bytes], path: Path) -> Iterator[IO[bytes]]:
    """The same text makes the same bytes: no name and no time in them."""
    if path.suffix == ".gz":
        with gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0) as packed:
            yield packed  # type: ignore[misc]
    elif path.suffix == ".zst":
        import zstandard  # noqa: PLC0415  (only where it is asked for)

        with zstandard.ZstdCompressor(_ZSTD_LEVEL).stream_writer(file, closefd=False) as packed_zst:
            yield packed_zst
    else:
        yield file
