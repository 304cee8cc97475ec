"""Tasks → queue: blocks of lines become blocks of tasks, each pushed and counted in one transaction."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from string import Formatter
from typing import Final
from urllib.parse import urlsplit

import redis
from redis.exceptions import ResponseError

from dlconsole.services import manifests
from dlconsole.services.connection import check_version, connect, translated
from dlconsole.services.keys import Keys
from dlconsole.services.permission import require_writable
from dlconsole.services.queue import SENTINEL
from dlconsole.settings import Settings

MAX_SAMPLES: Final = 10
_IMAGE_EXTENSIONS: Final = frozenset(
    {"jpg", "jpeg", "png", "gif", "webp", "avif", "bmp", "tif", "tiff", "ico"}
)

# What needs neither JSON escapes nor a closer look: nearly every line.
_PLAIN_URL: Final = re.compile(rb"https?://[!#-\[\]-~]+")
_HTTP: Final = re.compile(r"https?://[^/?#\s]", re.IGNORECASE)


@dataclass(slots=True)
class FeedReport:
    """What feeding did so far. `lines` counts those consumed, also blank and bad ones, so that a later
    run can skip them; `tasks` were made of them, `fed` of these are known to be in Redis.
    `samples` are the first bad rows as (line number from 1, why).
    """

    lines: int = 0
    tasks: int = 0
    fed: int = 0
    not_http: int = 0
    blank: int = 0
    bad: int = 0
    position: int = 0
    samples: list[tuple[int, str]] = field(default_factory=list)
    stopped: bool = False

    def reject(self, line: int, why: str) -> None:
        """Count a bad row."""
        self.bad += 1
        if len(self.samples) < MAX_SAMPLES:
            self.samples.append((line, why))


class TaskWriter:
    """Makes the list items of one dataset: byte for byte what the legacy feeder's `json.dumps` gives."""

    def __init__(self, settings: Settings) -> None:
        template = settings.feed.path_template
        self._max_url_bytes = settings.feed.max_url_bytes
        self._fields = [name for _, name, _, _ in Formatter().parse(template) if name and name != "ds"]
        marks = {name: f"\x00{name}\x00" for name in ("sha256", "ab", "cd", "ext")}
        path = "/" + template.format_map(marks | {"ds": settings.dataset}).lstrip("/")
        escaped = json.dumps(path).replace("%", "%%")
        for name in marks:
            escaped = escaped.replace(f"\\u0000{name}\\u0000", "%s")
        self._format = f'{{"img_path": {escaped}, "img_url": "%s"}}'.encode()
        self._only_sha256 = self._fields == ["sha256"]

    def tasks(self, lines: list[bytes], report: FeedReport) -> list[bytes]:
        """The items of the good lines; the others are counted in `report`, which moves on."""
        first = report.lines
        items: list[bytes] = []
        append, plain, form, limit = items.append, _PLAIN_URL.fullmatch, self._format, self._max_url_bytes
        only_sha256 = self._only_sha256
        has_sentinel = any(SENTINEL in line for line in lines)
        for index, line in enumerate(lines):
            if plain(line) and only_sha256 and not has_sentinel and len(line) <= limit:
                append(form % (sha256(line).hexdigest().encode(), line))
            else:
                item = self._careful(line, first + index + 1, report)
                if item is not None:
                    append(item)
        report.lines += len(lines)
        return items

    def _careful(self, line: bytes, number: int, report: FeedReport) -> bytes | None:
        """The item of any line, or None with the reason in `report`."""
        line = line.strip()
        if not line:
            report.blank += 1
            return None
        why = self._fault(line)
        if why:
            report.reject(number, why)
            return None
        url = line.decode()
        if not _HTTP.match(url):
            # Fed all the same, as legacy does: its failure is then on record with the others.
            report.not_http += 1
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


def preview(path: Path, settings: Settings, count: int) -> list[bytes]:
    """The first `count` items that feeding `path` would give. Raises FeedError."""
    writer, report, items = TaskWriter(settings), FeedReport(), []
    for block in manifests.read_lines(path, max_line_bytes=settings.feed.max_url_bytes):
        items += writer.tasks(block.lines[: count * 100], report)
        if len(items) >= count:
            break
    return items[:count]


def feed(
    path: Path,
    settings: Settings,
    *,
    skip: int = 0,
    push: bool = True,
    on_progress: Callable[[FeedReport], bool] = lambda _report: True,
) -> FeedReport:
    """Feed one file, from line `skip` on; `on_progress` is called after each block, and ends it by False.

    `push=False` only reads and counts. Raises FeedError, ReadOnlyError, RedisUnavailable,
    RedisUnusable; the report that `on_progress` saw last then says how far it came.
    """
    report = FeedReport()
    if not push:
        _feed_blocks(path, settings, skip, report, lambda _items: None, on_progress)
        return report
    require_writable(settings, "feeding")
    with connect(settings.redis, name="dlconsole-feed") as client, translated(settings.redis):
        check_version(client.info("server"), settings.redis)
        pusher = _Pusher(client, Keys(settings.dataset), report)
        try:
            _feed_blocks(path, settings, skip, report, pusher.push, on_progress)
        finally:
            pusher.finish()
    return report


def _feed_blocks(
    path: Path,
    settings: Settings,
    skip: int,
    report: FeedReport,
    push: Callable[[list[bytes]], None],
    on_progress: Callable[[FeedReport], bool],
) -> None:
    writer = TaskWriter(settings)
    for lines, position, too_long in _blocks(path, settings, skip, report):
        items = writer.tasks(lines, report)
        if items:
            push(items)
        report.tasks += len(items)
        report.position = position
        for _ in range(too_long):
            report.lines += 1
            report.reject(report.lines, f"longer than {settings.feed.max_url_bytes} bytes")
        if not on_progress(report):
            report.stopped = True
            return


class _Pusher:
    """Pushes blocks, one ahead: while the server takes in a block, the next one is being made.

    A block and its count go in one transaction, so both are there or neither is.
    """

    def __init__(self, client: redis.Redis, keys: Keys, report: FeedReport) -> None:
        self._keys = keys
        self._report = report
        self._pool = client.connection_pool
        self._connection = self._pool.get_connection()
        self._sent = 0

    def push(self, items: list[bytes]) -> None:
        """Send a block; its answer is read before the next one is sent."""
        self._collect()
        commands = [
            (b"MULTI",),
            (b"LPUSH", self._keys.task, *items),
            (b"INCRBY", self._keys.fed, len(items)),
            (b"EXEC",),
        ]
        self._connection.send_packed_command(  # type: ignore[no-untyped-call]
            self._connection.pack_commands(commands)  # type: ignore[no-untyped-call]
        )
        self._sent = len(items)

    def finish(self) -> None:
        """Read the last answer, and give the connection back."""
        try:
            self._collect()
        finally:
            self._pool.release(self._connection)

    def _collect(self) -> None:
        if not self._sent:
            return
        sent, self._sent = self._sent, 0
        errors = []
        for _ in range(4):
            try:
                self._connection.read_response()
            except ResponseError as error:
                errors.append(error)
        if errors:  # the first says why; EXEC's only that it was called off
            raise errors[0]
        self._report.fed += sent


def _blocks(
    path: Path, settings: Settings, skip: int, report: FeedReport
) -> Iterator[tuple[list[bytes], int, int]]:
    """Lines in blocks of the size to push, after the first `skip`."""
    size = settings.feed.block
    for block in manifests.read_lines(path, max_line_bytes=settings.feed.max_url_bytes):
        lines, too_long = block.lines, block.too_long
        left = skip - report.lines
        if left > 0:
            skipped = min(left, len(lines))
            report.lines += skipped
            lines = lines[skipped:]
            if left > skipped and too_long:
                report.lines += 1
                too_long = 0
        if not lines and not too_long:
            continue
        for start in range(0, max(len(lines), 1), size):
            last = start + size >= len(lines)
            yield lines[start : start + size], block.position, too_long if last else 0
