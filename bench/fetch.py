"""The fetch engine's speed and memory, each row as a ratio against something else in the same run.

Each row has a floor and says PASS, FAIL or why it was not measured; see README.md, here beside.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # not this folder: its queue.py would hide the standard one

import argparse
import os
from contextlib import ExitStack
from typing import Any, Final

from bench.fetch_img2dataset import VARIABLE
from bench.fetch_rig import Bench
from bench.rig import (
    Cores,
    folder,
    machine,
    on_core,
    run,
)
from bench.rows import add_only, report
from bench.webs import PICTURE_BYTES, make_pictures
from dlconsole.services.connection import connect
from dlconsole.services.private_redis import PrivateRedis

MODULES: Final = {
    "bench.fetch_speed": ("tmpfs", "disk", "img2dataset", "aiohttp"),
    "bench.fetch_scale": ("processes",),
    "bench.fetch_hosts": ("hosts",),
    "bench.fetch_tls": ("tls",),
    "bench.fetch_dns": ("dns",),
    "bench.fetch_resident": ("memory", "flat"),
}
_LEAST_TASKS: Final = 2000
_ROOM_BYTES: Final = 2**26


def main() -> int:
    """Measure and print; EXIT_FAIL below a floor, EXIT_CANNOT where measuring went wrong."""
    args = _arguments()
    cores, usable = Cores.of_this_machine(), tuple(sorted(os.sched_getaffinity(0)))
    needs_bytes = int(1.3 * max(args.tasks, 20_480) * PICTURE_BYTES) + _ROOM_BYTES
    with ExitStack() as stack:
        stack.enter_context(on_core(cores.server))
        memory, kind = stack.enter_context(folder(in_memory=True, needs_bytes=needs_bytes))
        pictures = memory / "img"
        make_pictures(pictures)
        private = stack.enter_context(PrivateRedis())
        with connect(private.url, name="bench") as client:
            facts = machine(f"{client.info('server')['redis_version']}")
        bench = Bench(cores, usable, private.url, memory, kind, pictures, args)
        return report(MODULES, bench, facts)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add: Any = parser.add_argument
    add_only(parser, MODULES)
    add("--tasks", type=int, default=20_000, metavar="N", help="URLs of a run of the worker (default: 20000)")
    add("--rounds", type=int, default=5, metavar="N", help="rounds of each row (default: 5; slow rows: 3)")
    add("--disk-rounds", type=int, default=3, metavar="N", help="and on disk (default: 3)")
    add("--concurrency", type=int, default=64, metavar="N", help="the worker's, of one host (default: 64)")
    add(
        "--img2dataset",
        default=os.environ.get(VARIABLE, ""),
        metavar="PYTHON",
        help=f"the Python of an environment that has img2dataset (default: ${VARIABLE})",
    )
    add("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    if args.tasks < _LEAST_TASKS or min(args.rounds, args.disk_rounds, args.concurrency) < 1:
        parser.error(f"at least {_LEAST_TASKS} tasks, 1 round, concurrency 1")
    return args


if __name__ == "__main__":
    sys.exit(run(main))
