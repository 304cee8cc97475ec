"""Errors → tasks again: from the error list, or from exported files.

From the list: block by block into a spool, decided here, and one script makes the chosen ones tasks and
puts the others back. From files: marks in Redis, set by the script that pushes, know which lines are
tasks again. So a kill at any point loses and doubles nothing, and going on is starting again.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, TypeVar

import redis

from dlconsole.errors import DlconsoleError
from dlconsole.services import error_items, error_source, spool
from dlconsole.services.connection import check_version, connect, translated
from dlconsole.services.error_items import Filter
from dlconsole.services.error_source import ExportedFile, Line
from dlconsole.services.hosts import host_name
from dlconsole.services.keys import Keys
from dlconsole.services.objects import SENTINEL
from dlconsole.services.patience import Patience
from dlconsole.services.permission import require_writable
from dlconsole.services.scripts import script
from dlconsole.services.spool import Drainer
from dlconsole.settings import Settings

T = TypeVar("T")

FILE_MEMORY_MS: Final = 90 * 24 * 3_600_000
"""How long a chunk's lines are remembered after the last requeue that chose one of them."""


@dataclass(slots=True)
class RequeueReport:
    """What a requeue did so far. `read` of about `total` errors were looked at; `matched` are meant by the
    filter; of these `not_tasks` cannot be tried, `already` were requeued before, from this file or from one
    that is the same up to there.
    `unfinished` are files whose last line has no newline yet; it was not looked at.
    """

    total: int = 0
    read: int = 0
    matched: int = 0
    requeued: int = 0
    not_tasks: int = 0
    already: int = 0
    stopped: bool = False
    unfinished: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Order:
    """What to requeue: which errors, at most how many, and how to talk to the caller."""

    chosen: Filter
    stop: threading.Event
    say: Callable[[str], None]
    progress: Callable[[RequeueReport], None]
    limit: int | None = None


def count(settings: Settings, order: Order, paths: Sequence[Path] = ()) -> RequeueReport:
    """The dry run: what `requeue` would look at and choose now; changes nothing. `requeued` is what it
    would requeue.
    """
    report = RequeueReport()
    keys, url = Keys(settings.dataset), settings.redis
    with connect(url, name="dlconsole-errors") as client:
        for picked in _blocks_to_count(client, keys, url, report, paths, order):
            report.requeued += picked if order.limit is None else min(picked, order.limit - report.requeued)
            order.progress(report)
            if order.stop.is_set() or report.requeued == order.limit:
                break
    report.stopped = order.stop.is_set()
    return report


def _blocks_to_count(
    client: redis.Redis, keys: Keys, url: str, report: RequeueReport, paths: Sequence[Path], order: Order
) -> Iterator[int]:
    if not paths:
        report.total = error_source.list_length(client, keys, url)
        for items in error_source.sampled(client, keys, url, report.total):
            yield len(_choose(items, order, report))
    for path in paths:
        file = ExportedFile(path)
        for block in file.blocks():
            picked = _choose_lines(block, order, report)
            yield len(_not_done(client, keys, url, picked, report))
        if file.unfinished:
            report.unfinished.append(str(path))


def _choose_lines(block: Sequence[Line], order: Order, report: RequeueReport) -> list[tuple[Line, bytes]]:
    """(line, queue item) of those that are meant and can be tried."""
    picked = _choose([line.raw for line in block], order, report)
    return [(block[index], item) for index, item in picked]


def _not_done(
    client: redis.Redis, keys: Keys, url: str, picked: list[tuple[Line, bytes]], report: RequeueReport
) -> list[tuple[Line, bytes]]:
    """Without the lines that were requeued before; those are counted."""
    with translated(url), client.pipeline(transaction=False) as pipeline:
        for chunk, lines in groupby((line for line, _ in picked), key=attrgetter("chunk")):
            pipeline.smismember(keys.requeued(chunk), [line.mark for line in lines])
        done = list(chain.from_iterable(pipeline.execute()))
    report.already += sum(done)
    return [line for line, was_done in zip(picked, done, strict=True) if not was_done]


def _choose(items: Sequence[bytes], order: Order, report: RequeueReport) -> list[tuple[int, bytes]]:
    """(index, queue item) of those that are meant and can be tried."""
    picked: list[tuple[int, bytes]] = []
    for index, raw in enumerate(items):
        report.read += 1
        error = error_items.parse(raw)
        if not order.chosen.matches(error):
            continue
        report.matched += 1
        item = error_items.task_again(error) if error.is_task else b""
        if item and SENTINEL not in item:  # a legacy worker would stop at it
            picked.append((index, item))
        else:
            report.not_tasks += 1
    return picked


def requeue(settings: Settings, order: Order, paths: Sequence[Path] = ()) -> RequeueReport:
    """Requeue from the list, each error that is in it now looked at once, or from exported files.

    Waits where Redis is away. Raises ReadOnlyError, FeedError, RedisUnusable, FencedError, and
    RedisUnavailable where it was stopped while waiting.
    """
    require_writable(settings, "requeueing errors")
    report = RequeueReport()
    patience = Patience(order.stop.wait, order.say)
    with connect(settings.redis, name="dlconsole-errors") as client:
        patience.call(_check, client, settings)
        if paths:
            _from_files(client, settings, order, report, patience, paths)
        else:
            _from_list(client, settings, order, report, patience)
    report.stopped = order.stop.is_set()
    return report


def _check(client: redis.Redis, settings: Settings) -> None:
    with translated(settings.redis):
        check_version(client.info("server"), settings.redis)
    spool.tidy(client, Keys(settings.dataset), settings.redis)


def _from_list(
    client: redis.Redis, settings: Settings, order: Order, report: RequeueReport, patience: Patience
) -> None:
    keys, url = Keys(settings.dataset), settings.redis
    drainer = Drainer(client, keys, f"requeue-{secrets.token_hex(6)}", url=url)
    patience.call(drainer.enlist, spool.REQUEUE, host_name(settings), "")
    report.total = patience.call(error_source.list_length, client, keys, url)
    left, batch = report.total, 0
    try:
        while left > 0 and not order.stop.is_set() and report.requeued != order.limit:
            batch += 1
            spooled = patience.call(drainer.take, batch, min(left, settings.errors.batch))
            if not spooled.items:
                break
            picked = _choose(spooled.items, order, report)
            report.requeued += patience.call(drainer.requeue, batch, _within(order, report, picked))
            left -= len(spooled.items)
            order.progress(report)
    finally:
        _end(client, keys, url, drainer)


def _end(client: redis.Redis, keys: Keys, url: str, drainer: Drainer) -> None:
    """Put back what is undecided. Where Redis is away, the next requeue or export does it."""
    try:
        spool.give_back(client, keys, url, drainer.id, silent_ms=0)
    except DlconsoleError:
        pass


def _from_files(
    client: redis.Redis,
    settings: Settings,
    order: Order,
    report: RequeueReport,
    patience: Patience,
    paths: Sequence[Path],
) -> None:
    error_source.total_bytes(paths)
    keys, url = Keys(settings.dataset), settings.redis
    for path in paths:
        file = ExportedFile(path)
        for block in file.blocks():
            if order.stop.is_set() or report.requeued == order.limit:
                return
            if picked := _choose_lines(block, order, report):
                chunks = list(dict.fromkeys(line.chunk for line, _ in picked))
                lines = _within(order, report, patience.call(_not_done, client, keys, url, picked, report))
                report.requeued += _push_until_answered(patience, client, keys, url, chunks, lines)
            order.progress(report)
        if file.unfinished:
            report.unfinished.append(str(path))


def _within(order: Order, report: RequeueReport, picked: list[T]) -> list[T]:
    return picked if order.limit is None else picked[: order.limit - report.requeued]


def _push_until_answered(
    patience: Patience,
    client: redis.Redis,
    keys: Keys,
    url: str,
    chunks: Sequence[str],
    lines: Sequence[tuple[Line, bytes]],
) -> int:
    """As `_push_lines`, until there is an answer. One that comes only to a repeated call does not say what
    the calls before it did: as no line was requeued a moment before, it counts all.
    """
    calls = 0

    def push() -> int:
        nonlocal calls
        calls += 1
        moved = _push_lines(client, keys, url, chunks, lines)
        return moved if calls == 1 else len(lines)

    return patience.call(push)


def _push_lines(
    client: redis.Redis, keys: Keys, url: str, chunks: Sequence[str], lines: Sequence[tuple[Line, bytes]]
) -> int:
    """Requeue `lines`, and remember all of `chunks` anew. Returns how many were requeued now."""
    arguments: list[str | bytes | int] = [FILE_MEMORY_MS]
    places = {chunk: place for place, chunk in enumerate(chunks, 1)}
    for line, item in lines:
        arguments += places[line.chunk], line.mark, item
    names = [keys.task, keys.failed, keys.fed, *(keys.requeued(chunk) for chunk in chunks)]
    with translated(url):
        moved: Any = script("requeue_lines").run(client, names, *arguments)
    return int(moved)
