"""What failed, counted by kind, status or host; bounded, and it says where it is a sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final, Literal

from dlconsole.services import error_items, error_source, spool
from dlconsole.services.connection import connect
from dlconsole.services.error_items import ErrorItem
from dlconsole.services.error_source import ExportedFile
from dlconsole.services.keys import Keys
from dlconsole.services.spool import Holder
from dlconsole.settings import Settings

By = Literal["kind", "status", "host"]
NONE: Final = "-"
"""The group of errors that have no status, or no host."""


@dataclass(slots=True)
class Summary:
    """`read` of `total` errors were counted; `total` is None for files that were not read to their end.
    `held` are drainers that took errors which are not in files yet; `unfinished` files that were read to
    their end and whose last line has no newline yet; it was not counted.
    """

    by: By
    total: int | None = None
    read: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    held: list[Holder] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)

    @property
    def is_sample(self) -> bool:
        """Whether there are more errors than were read."""
        return self.total is None or self.read < self.total


def of_list(settings: Settings, by: By) -> Summary:
    """Of the error list; more than `errors.sample` are sampled. Raises RedisUnavailable, RedisUnusable."""
    keys, url = Keys(settings.dataset), settings.redis
    with connect(url, name="dlconsole-errors") as client:
        summary = Summary(by, total=error_source.list_length(client, keys, url))
        summary.held = [holder for holder in spool.holders(client, keys, url) if holder.held]
        for block in error_source.sampled(client, keys, url, settings.errors.sample):
            _count(summary, block)
    summary.total = max(summary.total or 0, summary.read)
    return summary


def of_files(settings: Settings, paths: Sequence[Path], by: By) -> Summary:
    """Of exported files: their first `errors.sample` lines. Raises FeedError."""
    error_source.total_bytes(paths)
    summary = Summary(by)
    lines = _all_lines(paths, summary)
    _count(summary, islice(lines, settings.errors.sample))
    if next(lines, None) is None:
        summary.total = summary.read
    return summary


def _all_lines(paths: Sequence[Path], summary: Summary) -> Iterator[bytes]:
    for path in paths:
        file = ExportedFile(path)
        for block in file.blocks():
            yield from (line.raw for line in block)
        if file.unfinished:
            summary.unfinished.append(str(path))


def _count(summary: Summary, items: Iterable[bytes]) -> None:
    for raw in items:
        summary.counts[_group(error_items.parse(raw), summary.by)] += 1
        summary.read += 1


def _group(error: ErrorItem, by: By) -> str:
    if by == "kind":
        return error.kind
    if by == "status":
        return NONE if error.status is None else str(error.status)
    return error.host or NONE
