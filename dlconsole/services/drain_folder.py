"""A folder of exported errors: which drainers are at home there, and what each is about to write.

Beside the files, in `.dlconsole/`, each drainer has up to three small files:

- `<id>.drainer`: says which error list it drains. Its process holds a lock on it; where the lock is free
  that process is gone, and the next one in this folder goes on as the same drainer. The file holds its
  own inode number, so a copy of the folder is seen to be one, and gets drainers of its own.
- `<id>.intent`: the batch that it is writing, and where. Written and fsynced before the first byte.
- `<id>.done`: the intent that it finished last. Batches up to this one are in the files.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

import msgspec

from dlconsole.errors import StoreError

STATE: Final = ".dlconsole"
_MAX_RECORD_BYTES: Final = 64 << 10


class Intent(msgspec.Struct, frozen=True):
    """`length` bytes with this digest go to `offset` of `file`: the lines of `batch` but for their first
    `skip` bytes, which an earlier process wrote.
    """

    batch: int
    file: str
    offset: int
    length: int
    sha256: str
    skip: int = 0


class _Record(msgspec.Struct, frozen=True):
    source: str
    inode: int


class Home:
    """One drainer's place in a folder, held by a lock until `close`."""

    def __init__(self, state: Path, drainer_id: str, lock: int) -> None:
        """`lock` is the locked descriptor of its `.drainer` file."""
        self.id = drainer_id
        self._state = state
        self._lock = lock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another process go on as this drainer."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @property
    def done(self) -> int:
        """The batch finished last; 0 before the first."""
        intent = _read_intent(self._path("done"))
        return intent.batch if intent else 0

    @property
    def intent(self) -> Intent | None:
        """The batch that is being written."""
        return _read_intent(self._path("intent"))

    def begin(self, intent: Intent) -> None:
        """Say durably what is about to be written."""
        draft = self._path("draft")
        file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            write_all(file, msgspec.json.encode(intent))
            os.fsync(file)
        finally:
            os.close(file)
        os.rename(draft, self._path("intent"))
        fsync_folder(self._state)

    def finish(self) -> None:
        """The bytes are on disk. Without fsync: should this be lost, the intent is checked again."""
        os.rename(self._path("intent"), self._path("done"))

    def call_off(self) -> None:
        """Nothing of it is in the file."""
        self._path("intent").unlink(missing_ok=True)

    def _path(self, kind: str) -> Path:
        return self._state / f"{self.id}.{kind}"


def open_home(folder: Path, source: str, host: str) -> Home:
    """A drainer for this process: one whose process is gone, else a new one. Raises StoreError."""
    with said(folder):
        state = folder / STATE
        state.mkdir(parents=True, exist_ok=True)
        home = next(free_homes(folder, source), None)
        return home or _new_home(state, source, host)


def free_homes(folder: Path, source: str) -> Iterator[Home]:
    """The drainers of this folder and this list whose processes are gone; each is locked from then on."""
    for path in sorted((folder / STATE).glob("*.drainer")):
        lock = _lock_record(path, source)
        if lock is not None:
            yield Home(path.parent, path.stem, lock)


def unfinished(folder: Path, file: str, source: str, *, but: str) -> list[str]:
    """The drainers of this folder and list, other than `but`, that have an open intent on `file`."""
    found = []
    for path in sorted((folder / STATE).glob("*.intent")):
        intent = _read_intent(path) if path.stem != but else None
        if intent and intent.file == file and _is_at_home(path.with_suffix(".drainer"), source):
            found.append(path.stem)
    return found


def try_home(folder: Path, drainer_id: str, source: str) -> Home | None:
    """That drainer, locked; None where its process lives."""
    path = folder / STATE / f"{drainer_id}.drainer"
    lock = _lock_record(path, source)
    return None if lock is None else Home(path.parent, drainer_id, lock)


def _new_home(state: Path, source: str, host: str) -> Home:
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", host)[:64]
    path = state / f"{name}-{secrets.token_hex(6)}.drainer"
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_all(lock, msgspec.json.encode(_Record(source, os.fstat(lock).st_ino)))
        os.fsync(lock)
        fsync_folder(state)
    except BaseException:
        os.close(lock)
        raise
    return Home(state, path.stem, lock)


def _lock_record(path: Path, source: str) -> int | None:
    """The locked descriptor, where the record is this list's and nobody else holds it."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_record(lock, source):
            return lock
    except BlockingIOError:
        pass
    except BaseException:
        os.close(lock)
        raise
    os.close(lock)
    return None


def _is_at_home(path: Path, source: str) -> bool:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return _is_record(file, source)
    finally:
        os.close(file)


def _is_record(file: int, source: str) -> bool:
    try:
        record = msgspec.json.decode(os.pread(file, _MAX_RECORD_BYTES, 0), type=_Record)
    except msgspec.DecodeError:
        return False  # its maker died before it had said anything
    return record == _Record(source, os.fstat(file).st_ino)


def _read_intent(path: Path) -> Intent | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Intent)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise StoreError(
            f"{path}: is damaged ({error}); look at the end of the newest file beside it"
        ) from error


def write_all(file: int, data: bytes) -> None:
    """Write every byte, however little the system takes at once."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def said(place: Path) -> Iterator[None]:
    """Turn an error of the system into ours, with the place."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{place}: {error.strerror or error}") from error
