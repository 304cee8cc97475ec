"""The row of memory: what feeding a long list takes at most, beside a short one.

Each list is fed by a process of its own, `feed_peak.py`. The queue is kept short meanwhile: it is the feeder's
memory that is asked for, not the server's.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import redis

from bench.feed_rig import KEYS, empty, write_urls
from bench.fetch_rig import Bench
from bench.rig import Ratio, RigError, child, folder, progress
from bench.rows import Row
from dlconsole.services.connection import connect

_SHORT: Final = 1_000_000
_LONG: Final = 5_000_000
_FULL: Final = 50_000_000
"""Lines. The floor is for the full form; a leak of a byte a line is seen in the other one as well."""
_MOST_GROWTH: Final = 1.1
_LINE_BYTES: Final = 130
_TRIM_S: Final = 0.05
_LEAST_LINES_PER_S: Final = 50_000
_START_S: Final = 30


def measure(bench: Bench, _wanted: set[str]) -> Iterator[Row]:
    """The row. Raises RigError."""
    lengths = (_SHORT, _FULL if bench.args.full else _LONG)
    with ExitStack() as stack:
        place, kind = stack.enter_context(folder(in_memory=False, needs_bytes=lengths[1] * _LINE_BYTES))
        client = stack.enter_context(connect(bench.redis_url, name="bench"))
        stack.enter_context(_without_file(client))
        peaks, notes = [], []
        for lines in lengths:
            urls = place / f"{lines}.txt"
            write_urls(urls, lines, bench.args.urls)
            peaks.append(_peak_bytes(urls, lines, bench, client))
            size = urls.stat().st_size
            notes.append(f"{lines:,} lines, {size >> 20:,} MiB on {kind}: {peaks[-1] / 2**20:.1f} MiB")
            progress(f"  {notes[-1]}")
            urls.unlink()
    what = f"peak memory, {lengths[1] // 10**6}M lines / {lengths[0] // 10**6}M"
    ratio = Ratio(what, (peaks[1] / peaks[0],), _MOST_GROWTH, at_most=True)
    if not bench.args.full:
        notes.append(f"--full feeds {_FULL // 10**6}M lines")
    yield Row("memory", what, ratio, lines=tuple(notes), figures={"peak_bytes": peaks, "lines": lengths})


def _peak_bytes(urls: Path, lines: int, bench: Bench, client: redis.Redis) -> int:
    arguments = [sys.executable, Path(__file__).with_name("feed_peak.py"), urls, bench.redis_url]
    with _trimmed(client), child(arguments, bench.cores.client, stdout=-1) as process:
        said, _ = process.communicate(timeout=_START_S + lines / _LEAST_LINES_PER_S)
    if process.returncode != 0 or not said:
        raise RigError("feeding in a process of its own failed")
    peak, fed = map(int, said.split())
    if fed != lines:
        raise RigError(f"fed {fed:,} of {lines:,} lines")
    return peak


@contextmanager
def _trimmed(client: redis.Redis) -> Iterator[None]:
    """Throw the queue away, again and again."""
    over = threading.Event()

    def trim() -> None:
        while not over.wait(_TRIM_S):
            client.unlink(KEYS.task)

    thread = threading.Thread(target=trim, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        empty(client)


@contextmanager
def _without_file(client: redis.Redis) -> Iterator[None]:
    """The server writes nothing to disk meanwhile: 50 million tasks would be 10 GB."""
    client.config_set("appendonly", "no")
    try:
        yield
    finally:
        client.config_set("appendonly", "yes")
