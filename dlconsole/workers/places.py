"""Where an image goes: a folder below the store's root and a name in it, both checked."""

from __future__ import annotations

import time
from typing import Final

import msgspec

from dlconsole.errors import BadPathError
from dlconsole.settings import WorkerSettings
from dlconsole.workers.partial import PARTIAL

MISMATCHED: Final = ".dlconsole-mismatched"
"""Folder in the root for bodies that are not what their task's hash says, where they are to be kept."""
LEDGER: Final = "ledger"
"""Folder in each dataset's that outcomes are written down in."""
MAX_PATH_BYTES: Final = 4000
MAX_NAME_BYTES: Final = 255
_NO_PARTS: Final = frozenset({"", ".", ".."})
_OWN_FOLDERS: Final = frozenset({PARTIAL, MISMATCHED})
_EXTENSIONS: Final = frozenset({"jpg", "jpeg", "png", "gif", "webp", "avif", "bmp", "tif", "tiff", "ico"})
_EXTENSION_OF: Final = {"JPEG": "jpg"}
"""Of each format its own name is the extension, but for these."""


class Place(msgspec.Struct, frozen=True, gc=False):
    """Where a file goes: a folder below the root ('' is the root) and a name in it; both checked."""

    folder: str
    name: str

    @property
    def path(self) -> str:
        """The path below the root, without a leading slash."""
        return f"{self.folder}/{self.name}" if self.folder else self.name


def place_of(path: str, *, below_dataset: bool = False) -> Place:
    """The place of a task's path under the store's root; one leading slash is the root. With
    `below_dataset` the first folder is still to be put in front of it.

    Raises BadPathError for `.`, `..` and empty parts (so also `//etc`), control characters, NUL,
    names above 255 bytes, text that is no valid UTF-8, dlconsole's own folders, and those of ledgers,
    whatever the dataset and, for filesystems that do not mind, the case.
    """
    relative = path.removeprefix("/")
    parts = relative.split("/")
    if parts[0] in _OWN_FOLDERS:
        raise BadPathError(f"path is in dlconsole's own folder: {path[:200]!r}")
    if not _NO_PARTS.isdisjoint(parts):
        raise BadPathError(f"path has an empty, '.' or '..' part: {path[:200]!r}")
    second = 0 if below_dataset else 1
    if len(parts) > second and parts[second].casefold() == LEDGER:
        raise BadPathError(f"path is in a ledger's folder: {path[:200]!r}")
    if not relative.isascii() or not relative.isprintable():
        _check_characters(path, relative, parts)
    elif len(relative) > MAX_NAME_BYTES and (
        len(relative) > MAX_PATH_BYTES or max(map(len, parts)) > MAX_NAME_BYTES
    ):
        raise BadPathError(f"path is too long: {path[:200]!r}…")
    folder, _, name = relative.rpartition("/")
    return Place(folder, name)


def _check_characters(path: str, relative: str, parts: list[str]) -> None:
    if any(c < " " or c == "\x7f" for c in relative):
        raise BadPathError(f"path has a control character: {path[:200]!r}")
    try:
        too_long = len(relative.encode()) > MAX_PATH_BYTES
        too_long = too_long or max(len(part.encode()) for part in parts) > MAX_NAME_BYTES
    except UnicodeEncodeError:
        raise BadPathError(f"path is not valid Unicode: {path[:200]!r}") from None
    if too_long:
        raise BadPathError(f"path is too long: {path[:200]!r}…")


class Layout:
    """What the worker makes of its tasks' paths: nothing, or as `worker.layout` and `worker.ext` say."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._hourly = settings.layout == "hourly"
        self._real = settings.ext == "real"

    def place_of(self, path: str) -> Place:
        """Where a task wants to go. Raises BadPathError."""
        return place_of(path, below_dataset=self._hourly)

    def final(self, place: Place, image_format: str = "") -> Place:
        """Where it goes now, as an image of that format; '' is one that is not known."""
        if not (self._hourly or self._real):
            return place
        folder, name = place.folder, place.name
        if self._hourly:
            # Local time, as the legacy downloader has it.
            folder = f"{time.strftime('%Y%m%d%H')}/{folder}".rstrip("/")
        if self._real and image_format:
            name = _with_extension(name, _EXTENSION_OF.get(image_format, image_format.lower()))
        return Place(folder, name)


def _with_extension(name: str, extension: str) -> str:
    stem, _, found = name.rpartition(".")
    return f"{stem if stem and found.lower() in _EXTENSIONS else name}.{extension}"
