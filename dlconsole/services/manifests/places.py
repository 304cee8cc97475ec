"""Where lists are: files, folders, globs, http(s) URLs and standard input; and which format each has."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from dlconsole.errors import FeedError

RowFormat = Literal["txt", "csv", "tsv", "tsv-quoted", "json", "jsonl", "parquet"]
Packing = Literal["", "gz", "zst"]

_FORMATS: Final[dict[str, RowFormat]] = {
    "txt": "txt",
    "csv": "csv",
    "tsv": "tsv",
    "json": "json",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "parquet": "parquet",
}
_PACKINGS: Final[dict[str, Packing]] = {"gz": "gz", "zst": "zst"}
_URL: Final = re.compile(r"https?://", re.IGNORECASE)
STANDARD_INPUT: Final = Path("-")


@dataclass(frozen=True, slots=True)
class Remote:
    """A list that is fetched. Its text is the URL without user, password, query and fragment: those may be
    secret, and are neither shown nor stored.
    """

    url: str = field(repr=False)

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        return f"{parts.scheme.lower()}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    @property
    def name(self) -> str:
        """The last part of its path."""
        return urlsplit(self.url).path.rpartition("/")[2]


Place = Path | Remote


@dataclass(frozen=True, slots=True)
class Format:
    """What a list's bytes mean, and how they are packed."""

    rows: RowFormat
    packing: Packing = ""

    def __str__(self) -> str:
        return f"{self.rows}.{self.packing}" if self.packing else self.rows


def format_of(place: Place, wanted: str = "", fallback: str = "") -> Format:
    """The format of a list: `wanted`, else as its name ends, else `fallback`, else plain text. How it is
    packed is told by its name alone.
    """
    rows, packing = _by_name(place.name)
    chosen = wanted or rows or fallback or "txt"
    return Format(chosen, packing)  # type: ignore[arg-type]  # settings and presets have no other


def _by_name(name: str) -> tuple[RowFormat | None, Packing]:
    stem, _, last = name.lower().rpartition(".")
    packing = _PACKINGS.get(last, "") if stem else ""
    if packing:
        stem, _, last = stem.rpartition(".")
    rows = _FORMATS.get(last) if stem else None
    return (None, "") if packing and rows == "parquet" else (rows, packing)


def is_stream(place: Place) -> bool:
    """Whether a list can be read only once: standard input, a pipe."""
    if isinstance(place, Remote):
        return False
    return place == STANDARD_INPUT or (place.exists() and not place.is_file())


def expand(words: Iterable[str], *, but: Iterable[Path] = ()) -> list[Place]:
    """The lists that words of a command line name, each once: files, URLs and `-` as they are, the lists in
    folders and below them, what globs match that no shell has expanded. In folders, and for globs that match
    folders, only names with a known extension count, and nothing in the places of `but`. Raises FeedError.
    """
    without = {Path(os.path.abspath(place)) for place in but}
    found: list[Place] = []
    for word in words:
        path = Path(word)
        if _URL.match(word):
            found.append(_remote(word))
        elif word == "-" or os.path.lexists(word) or not glob.has_magic(word):
            found += _lists_in(path, without) if path.is_dir() else [path]
        else:
            matches = sorted(map(Path, glob.glob(word, recursive=True)))
            if not matches:
                raise FeedError(f"{word}: nothing matches; name files, folders or http(s) URLs")
            for match in matches:
                found += _lists_in(match, without, may_be_empty=True) if match.is_dir() else [match]
    return list(dict.fromkeys(found))


def _remote(url: str) -> Remote:
    try:
        usable = bool(urlsplit(url).hostname) and urlsplit(url).port != 0
    except ValueError:
        usable = False
    if not usable or not url.isprintable() or " " in url:
        raise FeedError("this http(s) URL of a list cannot be used: it has no host, a wrong port, or spaces")
    return Remote(url)


def _lists_in(folder: Path, without: set[Path], *, may_be_empty: bool = False) -> list[Path]:
    found = sorted(_walk(folder, without))
    if not found and not may_be_empty:
        known = ", ".join(f".{name}" for name in _FORMATS)
        raise FeedError(f"{folder}: no list in this folder: no name ends in {known} (text also in .gz, .zst)")
    return found


def lists_below(folders: Iterable[Path], without: Iterable[Path]) -> set[Path]:
    """The lists in folders and below them, as `expand` finds them; a folder that is not there has none."""
    left_out = {Path(os.path.abspath(place)) for place in without}
    return {path for folder in folders for path in _walk(folder, left_out)}


def _walk(folder: Path, without: set[Path]) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        here = Path(root)
        folders[:] = [name for name in folders if not _is_left_out(here / name, without)]
        for name in names:
            path = here / name
            if _by_name(name)[0] and path.is_file() and not _is_left_out(path, without):
                yield path


def _is_left_out(path: Path, without: set[Path]) -> bool:
    return path.name.startswith(".") or Path(os.path.abspath(path)) in without


def total_bytes(places: list[Place]) -> int | None:
    """The size of all files together; None where that is not known before they are read. Raises FeedError
    where one is missing.
    """
    total = 0
    known = True
    for place in places:
        if isinstance(place, Remote) or place == STANDARD_INPUT:
            known = False
            continue
        try:
            if place.is_dir():
                raise FeedError(f"{place}: is a folder; name its files")
            total += place.stat().st_size
        except OSError as error:
            raise FeedError(f"{place}: {error.strerror}") from error
        known = known and place.is_file()
    return total if known else None
