"""The feeder's speed and memory, and what the ledger costs a worker: each row as a ratio, with its floor.

Each row says PASS, FAIL or why it was not measured; see README.md, here beside.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # not this folder: its queue.py would hide the standard one

import argparse
import os
from contextlib import ExitStack
from typing import Any, Final

from bench.feed_rig import REAL_URLS
from bench.fetch_rig import Bench
from bench.rig import Cores, folder, machine, on_core, run
from bench.rows import add_only, report
from bench.webs import PICTURE_BYTES
from dlconsole.services.connection import connect
from dlconsole.services.private_redis import PrivateRedis

MODULES: Final = {
    "bench.feed_text": ("legacy", "bare", "rate"),
    "bench.feed_parquet": ("parquet",),
    "bench.feed_ledger": ("ledger",),
    "bench.feed_memory": ("memory",),
}
_LINE_BYTES: Final = 130
_ROW_BYTES: Final = 300
_LEAST: Final = 2000


def main() -> int:
    """Measure and print; EXIT_FAIL below a floor, EXIT_CANNOT where measuring went wrong."""
    args = _arguments()
    cores, usable = Cores.of_this_machine(), tuple(sorted(os.sched_getaffinity(0)))
    with ExitStack() as stack:
        stack.enter_context(on_core(cores.server))
        memory, kind = stack.enter_context(folder(in_memory=True, needs_bytes=_needs_bytes(args)))
        private = stack.enter_context(PrivateRedis())
        with connect(private.url, name="bench") as client:
            facts = machine(f"{client.info('server')['redis_version']}")
        bench = Bench(cores, usable, private.url, memory, kind, memory / "img", args)
        return report(MODULES, bench, facts)


def _needs_bytes(args: argparse.Namespace) -> int:
    rows = args.rows * _ROW_BYTES if "parquet" in args.only else 0
    pictures = int(1.4 * args.pictures * PICTURE_BYTES) if "ledger" in args.only else 0
    return max(args.tasks * _LINE_BYTES, rows, pictures) + 2**26


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add: Any = parser.add_argument
    add_only(parser, MODULES)
    add("--tasks", type=int, default=1_000_000, metavar="N", help="lines of plain text (default: 1000000)")
    add("--legacy-tasks", type=int, default=20_000, metavar="N", help="of these one by one (default: 20000)")
    add("--rows", type=int, default=300_000, metavar="N", help="rows of the Parquet list (default: 300000)")
    add(
        "--pictures", type=int, default=20_000, metavar="N", help="URLs of the ledger's runs (default: 20000)"
    )
    add("--rounds", type=int, default=5, metavar="N", help="rounds of each row (default: 5)")
    add(
        "--full",
        action="store_true",
        help="row memory: 50 million lines (default: 5), 6 GB of disk, 5 minutes",
    )
    add("--urls", type=Path, default=REAL_URLS, metavar="FILE", help="real URLs to make lists of")
    add("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    if min(args.tasks, args.rows, args.pictures) < _LEAST or args.rounds < 1:
        parser.error(f"at least {_LEAST} tasks, rows and pictures, and 1 round")
    if not 1 <= args.legacy_tasks <= args.tasks:
        parser.error("--legacy-tasks is from 1 to --tasks")
    return args


if __name__ == "__main__":
    sys.exit(run(main))
