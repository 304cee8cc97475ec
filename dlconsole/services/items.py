"""Lines of a list → the queue's items."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from string import Formatter
from typing import Final
from urllib.parse import urlsplit

from dlconsole.services.objects import SENTINEL
from dlconsole.settings import Settings

MAX_SAMPLES: Final = 10
_IMAGE_EXTENSIONS: Final = frozenset(
    {"jpg", "jpeg", "png", "gif", "webp", "avif", "bmp", "tif", "tiff", "ico"}
)

# What needs neither JSON escapes nor a closer look: nearly every line.
_PLAIN_URL: Final = re.compile(rb"https?://[!#-\[\]-~]+")
_HTTP: Final = re.compile(r"https?://[^/?#\s]", re.IGNORECASE)


@dataclass(slots=True)
class Tally:
    """What became of a list's lines so far. `lines` counts all, also blank and bad ones; `tasks` were
    made of them. `samples` are the first bad rows: line number from 1 → why.
    """

    lines: int = 0
    tasks: int = 0
    not_http: int = 0
    blank: int = 0
    bad: int = 0
    samples: dict[int, str] = field(default_factory=dict)

    def reject(self, line: int, why: str) -> None:
        """Count a bad row."""
        self.bad += 1
        if len(self.samples) < MAX_SAMPLES:
            self.samples[line] = why


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
        first = tally.lines
        items: list[bytes] = []
        append, plain, form, limit = items.append, _PLAIN_URL.fullmatch, self._format, self._max_url_bytes
        is_quick = self._from_sha256 and not any(SENTINEL in line for line in lines)
        is_sharded = self._is_sharded
        for index, line in enumerate(lines):
            if is_quick and plain(line) and len(line) <= limit:
                name = sha256(line).hexdigest().encode()
                append(form % ((name[:2], name[2:4], name, line) if is_sharded else (name, line)))
            else:
                item = self._careful(line, first + index + 1, tally)
                if item is not None:
                    append(item)
        tally.lines += len(lines)
        tally.tasks += len(items)
        for _ in range(too_long):
            tally.lines += 1
            tally.reject(tally.lines, f"longer than {limit} bytes")
        return items

    def _careful(self, line: bytes, number: int, tally: Tally) -> bytes | None:
        """The item of any line, or None with the reason in `tally`."""
        line = line.strip()
        if not line:
            tally.blank += 1
            return None
        why = self._fault(line)
        if why:
            tally.reject(number, why)
            return None
        url = line.decode()
        if not _HTTP.match(url):
            # Fed all the same, as legacy does: its failure is then on record with the others.
            tally.not_http += 1
        return self._format % (*self._path_values(url), json.dumps(url)[1:-1].encode())

    def _fault(self, line: bytes) -> str:
        """Why a line is no URL that can be fed, or nothing."""
        if len(line) > self._max_url_bytes:
            return f"longer than {self._max_url_bytes} bytes"
        try:
            url = line.decode()
        except UnicodeDecodeError:
            return "not UTF-8"
        if SENTINEL in line:
            return "contains 'stop_this_task', which stops a legacy worker"
        if any(c < " " or c == "\x7f" for c in url):
            return "contains a control character"
        return ""

    def _path_values(self, url: str) -> Iterator[bytes]:
        digest = sha256(url.encode()).hexdigest()
        values = {"sha256": digest, "ab": digest[:2], "cd": digest[2:4]}
        for name in self._fields:
            yield (values[name] if name in values else _extension(url)).encode()


def _extension(url: str) -> str:
    """The URL's own extension where it is a picture's, else `jpg`."""
    try:
        found = urlsplit(url).path.rpartition(".")[2].lower()
    except ValueError:
        return "jpg"
    return found if found in _IMAGE_EXTENSIONS else "jpg"
