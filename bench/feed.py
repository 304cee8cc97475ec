"""Tasks a second of our feeder, beside the legacy way: one LPUSH a task; and its memory by file size.

The client has one core, Redis the other. A list of a million URLs goes through the feeder, 20,000 of
them through the legacy loop, in turns, the queue deleted in between. For information also beside the
least that could do the work: a loop that hashes, encodes and pushes blocks.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # not this folder: its queue.py would hide the standard one

import argparse
import gc
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from itertools import islice
from typing import Final

import redis

from bench.rig import (
    EXIT_FAIL,
    Cores,
    Ratio,
    RigError,
    child,
    folder,
    machine,
    on_core,
    paired,
    progress,
    run,
    speeds,
)
from dlconsole.services.connection import connect
from dlconsole.services.feeder import feed
from dlconsole.services.keys import Keys
from dlconsole.services.private_redis import PrivateRedis
from dlconsole.settings import Settings

FLOOR_LEGACY: Final = 25.0
FLOOR_TASKS_PER_S: Final = 100_000
MOST_MEMORY_GROWTH: Final = 1.1
REAL_URLS: Final = Path(__file__).parents[2] / "shared/data/urls/laion-10k.txt"
_SMALL, _LARGE = 200_000, 4_000_000
_BLOCK: Final = 2000
_DATASET: Final = "bench"
_TRIM_S: Final = 0.05
_MEMORY_RUN_S: Final = 180.0


def write_urls(path: Path, count: int, real: Path) -> str:
    """A list of `count` different URLs that look like real ones; what they were made of."""
    if real.is_file():
        lines = [line for line in real.read_text(encoding="utf-8").splitlines() if line]
        made_of = f"{len(lines):,} real URLs, each with a suffix of its own"
    else:
        lines = list(_made_up(10_000))
        made_of = "made-up URLs"
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, count, len(lines)):
            block = lines[: count - start]
            file.write("".join(f"{url}{'&' if '?' in url else '?'}n={start}\n" for url in block))
    return made_of


def _made_up(count: int) -> Iterator[str]:
    for number in range(count):
        digest = sha256(str(number).encode()).hexdigest()
        host = f"{('images', 'cdn', 'static', 'i')[number % 4]}{number % 977}.example-{digest[:6]}.com"
        yield f"http{'s' if number % 3 else ''}://{host}/wp-content/uploads/{digest[6 : 6 + number % 40]}/{number}.jpg"


# -- the contenders: each takes the list and the settings, and returns how many tasks it fed --------


def feeder(urls: Path, settings: Settings) -> int:
    """Ours."""
    return feed(urls, settings).fed


def legacy(urls: Path, settings: Settings, count: int) -> int:
    """One task, one call."""
    client = connect(settings.redis, name="bench")
    with client, urls.open(encoding="utf-8") as file:
        for line in islice(file, count):
            url = line.rstrip("\n")
            digest = sha256(url.encode()).hexdigest()
            task = {"img_path": f"/{_DATASET}/images/{digest}.jpg", "img_url": url}
            client.lpush(f"{_DATASET}_task", json.dumps(task))
    return count


def bare(urls: Path, settings: Settings) -> int:
    """Nothing checked, nothing counted: hash, encode, push a block."""
    fed = 0
    head, middle = b'{"img_path": "/%s/images/' % _DATASET.encode(), b'.jpg", "img_url": "'
    client = connect(settings.redis, name="bench")
    with client, urls.open("rb") as file:
        while block := list(islice(file, _BLOCK)):
            lines = [line[:-1] for line in block]
            client.lpush(
                f"{_DATASET}_task",
                *[head + sha256(line).hexdigest().encode() + middle + line + b'"}' for line in lines],
            )
            fed += len(lines)
    return fed


def speed(contender: Callable[[], int], client: redis.Redis) -> float:
    """Tasks a second, on an empty queue; that all of them lie there is checked."""
    keys = Keys(_DATASET)
    gc.collect()
    started = time.perf_counter()
    fed = contender()
    seconds = time.perf_counter() - started
    queued = client.llen(keys.task)
    client.delete(keys.task, keys.fed, keys.feed)
    if queued != fed:
        raise RigError(f"fed {fed:,} tasks, but {queued:,} are queued")
    return fed / seconds


# -- memory --------------------------------------------------------------------------------------


def peak_bytes(urls: Path, settings: Settings, client: redis.Redis, cores: Cores) -> int:
    """The most memory that feeding a list takes, in a process of its own."""
    arguments = [sys.executable, __file__, "--peak-of", urls, "--redis", settings.redis]
    with _trimmed(client, settings), child(arguments, cores.client, stdout=-1) as process:
        said, _ = process.communicate(timeout=_MEMORY_RUN_S)
    if process.returncode != 0 or not said:
        raise RigError("feeding in a process of its own failed")
    return int(said)


@contextmanager
def _trimmed(client: redis.Redis, settings: Settings) -> Iterator[None]:
    """Keep the queue short meanwhile: it is the feeder's memory that is asked for, not the server's."""
    over = threading.Event()
    keys = Keys(settings.dataset)

    def trim() -> None:
        while not over.wait(_TRIM_S):
            client.unlink(keys.task)

    thread = threading.Thread(target=trim, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        client.unlink(keys.task, keys.fed, keys.feed)


def _print_peak(urls: Path, redis_url: str) -> int:
    feed(urls, Settings(redis=redis_url, dataset=_DATASET))
    # Not ru_maxrss: a child's begins with what its parent had when it was started.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak_kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    print(int(peak_kib) * 1024)
    return 0


# -- the program ---------------------------------------------------------------------------------


def main() -> int:
    """Measure and print; EXIT_FAIL where a bound does not hold."""
    args = _arguments()
    if args.peak_of:
        return _print_peak(args.peak_of, args.redis)
    cores = Cores.of_this_machine()
    with ExitStack() as stack:
        most = max(args.tasks, 0 if args.no_memory else _LARGE)
        place, kind = stack.enter_context(folder(in_memory=True, needs_bytes=200 * most))
        with on_core(cores.server):
            private = stack.enter_context(PrivateRedis())
        client = stack.enter_context(connect(private.url, name="bench"))
        facts = machine(f"{client.info('server')['redis_version']}")
        made_of = write_urls(place / "urls.txt", args.tasks, args.urls)
        progress(f"{args.tasks:,} tasks of {made_of}; list on {kind}; {cores.note}")
        settings = Settings(redis=private.url, dataset=_DATASET)
        stack.enter_context(on_core(cores.client))
        found = _rounds(place / "urls.txt", settings, client, args)
        peaks = () if args.no_memory else _memory(place, settings, client, cores, args)
    ratios = [
        Ratio("feeder / one LPUSH a task", paired(found["feeder"], found["legacy"]), FLOOR_LEGACY),
        Ratio(
            "feeder, in 1,000 tasks/s",
            tuple(value / 1000 for value in found["feeder"]),
            FLOOR_TASKS_PER_S / 1000,
        ),
        Ratio("feeder / bare loop of blocks", paired(found["feeder"], found["bare"])),
    ]
    if peaks:
        name = f"peak memory, {_LARGE // 10**6}M lines / {_SMALL // 1000}k lines"
        ratios.append(Ratio(name, (peaks[1] / peaks[0],), MOST_MEMORY_GROWTH, at_most=True))
    if args.json:
        report = {
            "machine": facts,
            "list": made_of,
            "tasks_per_s": found,
            "peak_bytes": peaks,
            "ratios": {ratio.name: ratio.to_json() for ratio in ratios},
        }
        print(json.dumps(report, indent=1))
    else:
        print(", ".join(f"{name}: {value}" for name, value in facts.items()))
        print(f"{args.tasks:,} tasks of {made_of}; {cores.note}; median [min-max] of the rounds\n")
        print(speeds("feeder (hash, check, encode, push, count)", found["feeder"], "tasks/s"))
        print(speeds("bare loop (hash, encode, push blocks)", found["bare"], "tasks/s"))
        print(speeds("legacy (hash, encode, one LPUSH a task)", found["legacy"], "tasks/s"))
        if peaks:
            print(f"peak memory: {peaks[0] / 2**20:.1f} MiB and {peaks[1] / 2**20:.1f} MiB")
        print()
        for ratio in ratios:
            print(ratio.line())
    return EXIT_FAIL if any(ratio.verdict == "FAIL" for ratio in ratios) else 0


def _rounds(
    urls: Path, settings: Settings, client: redis.Redis, args: argparse.Namespace
) -> dict[str, list[float]]:
    contenders: dict[str, Callable[[], int]] = {
        "feeder": lambda: feeder(urls, settings),
        "legacy": lambda: legacy(urls, settings, args.legacy_tasks),
        "bare": lambda: bare(urls, settings),
    }
    legacy(urls, settings, 1000)  # warm-up
    client.flushall()
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(args.rounds):
        for name in contenders if number % 2 == 0 else reversed(contenders):
            found[name].append(speed(contenders[name], client))
        said = ", ".join(f"{name} {values[-1]:,.0f}" for name, values in found.items())
        progress(f"  round {number + 1} of {args.rounds}: {said} tasks/s")
    return found


def _memory(
    place: Path, settings: Settings, client: redis.Redis, cores: Cores, args: argparse.Namespace
) -> tuple[int, ...]:
    peaks = []
    for lines in (_SMALL, _LARGE):
        urls = place / f"{lines}.txt"
        write_urls(urls, lines, args.urls)
        peaks.append(peak_bytes(urls, settings, client, cores))
        progress(
            f"  feeding {lines:,} lines ({urls.stat().st_size >> 20} MiB): peak {peaks[-1] / 2**20:.1f} MiB"
        )
        urls.unlink()
    return tuple(peaks)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--tasks", type=int, default=1_000_000, metavar="N", help="lines (default: 1000000)")
    parser.add_argument(
        "--legacy-tasks",
        type=int,
        default=20_000,
        metavar="N",
        help="of these, fed one by one (default: 20000)",
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds (default: 5)")
    parser.add_argument(
        "--urls", type=Path, default=REAL_URLS, metavar="FILE", help="real URLs to make the list of"
    )
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory measurement")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--peak-of", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--redis", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.tasks < args.legacy_tasks or args.legacy_tasks < 1000 or args.rounds < 1:
        parser.error("at least 1 round, 1000 tasks one by one, and no more of these than --tasks")
    return args


if __name__ == "__main__":
    sys.exit(run(main))
