"""The rows of resident memory, measured by fetch_memory.py: the most there was, and whether it stays there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from bench.fetch_rig import Bench
from bench.rig import folder, progress
from bench.rows import Row

ROWS: Final = ("memory", "flat")
_WHAT: Final = ("resident memory on a hostile web", "resident memory, late / early")
_NEEDS_BYTES: Final = 12 * 10**9


def measure(bench: Bench, wanted: set[str]) -> Iterator[Row]:
    """The rows of `ROWS` that are wanted: one run gives both. Raises RigError."""
    rows = [(name, what) for name, what in zip(ROWS, _WHAT, strict=True) if name in wanted]
    try:
        from bench import fetch_memory
    except ImportError:
        for name, what in rows:
            yield Row(name, what, why="bench/fetch_memory.py is not there")
        return
    with folder(in_memory=False, needs_bytes=_NEEDS_BYTES) as (place, kind):
        progress(f"  files on {kind}")
        found = fetch_memory.measure(bench.redis_url, place, bench.cores)
    for name, ratio in zip(ROWS, found.ratios, strict=True):
        if name in wanted:
            lines = (f"{found.tasks:,} tasks in {found.seconds:.0f} s; at most {found.peak:.0f} MiB",)
            yield Row(name, ratio.name, ratio, lines=lines, figures={"peak_mib": round(found.peak, 1)})
