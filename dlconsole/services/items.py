"""Lines of a list → the queue's items; and what is counted of lines and rows of every format."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from string import Formatter
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from dlconsole.services.objects import SENTINEL
from dlconsole.settings import Settings

MAX_SAMPLES: Final = 10
IMAGE_EXTENSIONS: Final = frozenset(
    {"jpg", "jpeg", "png", "gif", "webp", "avif", "bmp", "tif", "tiff", "ico"}
)

# What needs neither JSON escapes nor a closer look: nearly every line.
_PLAIN_URL: Final = re.compile(rb"https?://[!#-\[\]-~]+")
_PLAIN_LINES: Final = re.compile(rb"(?:https?://[!#-\[\]-~]++\n)*+")
_HTTP: Final = re.compile(r"https?://[^/?#\s]", re.IGNORECASE)


class Reject(NamedTuple):
    """A bad row: its number from 1, why, and what there is of it."""

    row: int
    why: str
    data: Any


@dataclass(slots=True)
class Tally:
    """What became of a list's lines or rows so far. `lines` counts all, also blank and bad ones; `tasks` were
    made of them. `samples` are the first bad rows: number from 1 → why.
    """

    lines: int = 0
    tasks: int = 0
    not_http: int = 0
    blank: int = 0
    bad: int = 0
    samples: dict[int, str] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)
    """The bad rows of the last block."""
    too_large: Counter[str] = field(default_factory=Counter)
    """Of the last block: values that were too large to travel along, by column."""

    def reject(self, line: int, why: str, data: Any = None) -> None:
        """Count a bad row."""
        self.bad += 1
        self.rejects.append(Reject(line, why, data))
        if len(self.samples) < MAX_SAMPLES:
            self.samples[line] = why

    def next_block(self) -> None:
        """Forget what is only of the last block."""
        self.rejects, self.too_large = [], Counter()


class TaskWriter:
    """Makes the list items of one dataset: byte for byte what the legacy feeder's `json.dumps` gives."""

    def __init__(self, settings: Settings) -> None:
        template = settings.feed.template
        self._max_url_bytes = settings.feed.max_url_bytes
        self._fields = [name for _, name, _, _ in Formatter().parse(template) if name and name != "ds"]
        marks = {name: f"\x00{name}\x00" for name in ("sha256", "ab", "cd", "ext")}
        path = "/" + template.format_map(marks | {"ds": settings.dataset}).lstrip("/")
        escaped = json.dumps(path).replace("%", "%%")
        for name in marks:
            escaped = escaped.replace(f"\\u0000{name}\\u0000", "%s")
        self._format = f'{{"img_path": {escaped}, "img_url": "%s"}}'.encode()
        self._from_sha256 = self._fields in (["sha256"], ["ab", "cd", "sha256"])
        self._is_sharded = self._fields == ["ab", "cd", "sha256"]

    def tasks(self, lines: list[bytes], tally: Tally, *, too_long: int = 0) -> list[bytes]:
        """The items of the good lines; the others are counted in `tally`, which moves on. `too_long`
        lines follow that were not even read.
        """
        first, limit = tally.lines, self._max_url_bytes
        text = b"\n".join(lines) + b"\n"
        is_quick = self._from_sha256 and SENTINEL not in text
        if is_quick and lines and _PLAIN_LINES.fullmatch(text) and max(map(len, lines)) <= limit:
            items = self._plain(lines)
        else:
            items = []
            for index, line in enumerate(lines):
                if is_quick and _PLAIN_URL.fullmatch(line) and len(line) <= limit:
                    items += self._plain([line])
                elif (item := self._careful(line, first + index + 1, tally)) is not None:
                    items.append(item)
        tally.lines += len(lines)
        tally.tasks += len(items)
        for _ in range(too_long):
            tally.lines += 1
            tally.reject(tally.lines, f"longer than {limit} bytes")
        return items

    def _plain(self, lines: list[bytes]) -> list[bytes]:
        form = self._format
        if not self._is_sharded:
            return [form % (sha256(line).hexdigest().encode(), line) for line in lines]
        names = [sha256(line).hexdigest().encode() for line in lines]
        return [form % (name[:2], name[2:4], name, line) for name, line in zip(names, lines, strict=True)]

    def _careful(self, line: bytes, number: int, tally: Tally) -> bytes | None:
        """The item of any line, or None with the reason in `tally`."""
        line = line.strip()
        if not line:
            tally.blank += 1
            return None
        why = url_fault(line, self._max_url_bytes)
        if why:
            tally.reject(number, why, line.decode("utf-8", "backslashreplace"))
            return None
        url = line.decode()
        if not is_http(url):
            # Fed all the same, as legacy does: its failure is then on record with the others.
            tally.not_http += 1
        return self._format % (*self._path_values(url), json.dumps(url)[1:-1].encode())

    def _path_values(self, url: str) -> Iterator[bytes]:
        digest = sha256(url.encode()).hexdigest()
        values = {"sha256": digest, "ab": digest[:2], "cd": digest[2:4]}
        for name in self._fields:
            yield (values[name] if name in values else extension(url)).encode()


def url_fault(url: bytes, max_bytes: int) -> str:
    """Why this is no URL that can be fed, or nothing."""
    if len(url) > max_bytes:
        return f"longer than {max_bytes} bytes"
    try:
        text = url.decode()
    except UnicodeDecodeError:
        return "not UTF-8"
    if SENTINEL in url:
        return "contains 'stop_this_task', which stops a legacy worker"
    if any(c < " " or c == "\x7f" for c in text):
        return "contains a control character"
    return ""


def is_http(url: str) -> bool:
    """Whether a worker would try to fetch it."""
    return _HTTP.match(url) is not None


def extension(url: str) -> str:
    """The URL's own extension where it is a picture's, else `jpg`."""
    try:
        found = urlsplit(url).path.rpartition(".")[2].lower()
    except ValueError:
        return "jpg"
    return found if found in IMAGE_EXTENSIONS else "jpg"
