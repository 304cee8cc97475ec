"""Images a second of our whole worker, beside the best bare libcurl loop and a requests thread pool.

One core has the servers (nginx, Redis), the other one the client. The worker claims from a real Redis,
fetches, checks, stores and acks; the other two only fetch and write files. They run one after the
other, round by round and back again, so that what disturbs the machine disturbs all of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # not this folder: its queue.py would hide the standard one

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Final

import psutil
import redis

from bench.contenders import Order, Result
from bench.rig import (
    EXIT_FAIL,
    PICTURE_BYTES,
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
    wait_for,
    web,
)
from dlconsole import log
from dlconsole.services.connection import connect
from dlconsole.services.feeder import feed
from dlconsole.services.keys import Keys
from dlconsole.services.private_redis import PrivateRedis
from dlconsole.services.supervisor import WorkerGroup
from dlconsole.settings import FetchSettings, Settings, WorkerSettings

FLOOR_LIBCURL: Final = 0.4
FLOOR_REQUESTS: Final = 3.0
_CONCURRENCIES: Final = {"libcurl": (16, 32, 64), "requests": (8, 16, 32)}
_SHARES: Final = {"worker": 1.0, "libcurl": 1.0, "requests": 0.15}
"""Part of the tasks that each one gets: a slow one needs fewer for a figure as good."""
_POLL_S: Final = 0.005
_RUN_S: Final = 120.0
_BYTES_A_FILE: Final = 1.3 * PICTURE_BYTES


class Race:
    """Runs one contender at a time against one server, into one folder."""

    def __init__(self, urls: Path, redis_url: str, cores: Cores, args: argparse.Namespace) -> None:
        self.best = {engine: tried[0] for engine, tried in _CONCURRENCIES.items()}
        self._urls = urls
        self._redis_url = redis_url
        self._cores = cores
        self._args = args
        self._keep = False

    def tune(self, store: Path) -> None:
        """Find each contender's best concurrency on the way; it is also the warm-up."""
        for engine, tried in _CONCURRENCIES.items():
            speed = dict.fromkeys(tried, 0.0)
            for n in (*tried, *reversed(tried)):
                result = self._contender(engine, store, n, self._count(engine) // 2)
                speed[n] = max(speed[n], result.images / result.seconds)
            self.best[engine] = max(speed, key=speed.__getitem__)
            found = ", ".join(f"{n}: {value:,.0f}" for n, value in speed.items())
            progress(f"  {engine:<10} by concurrency: {found} images/s")
        self._worker(store, self._count("worker") // 4)

    def rounds(
        self, store: Path, count: int, engines: tuple[str, ...], *, keep: bool = False
    ) -> dict[str, list[Result]]:
        """`count` rounds of each, in turns: A B C, C B A, …; `keep`: the files stay in `store`."""
        self._keep = keep
        results: dict[str, list[Result]] = {engine: [] for engine in engines}
        for number in range(count):
            for engine in engines if number % 2 == 0 else engines[::-1]:
                if engine == "worker":
                    result = self._worker(store, self._count(engine))
                else:
                    result = self._contender(engine, store, self.best[engine], self._count(engine))
                results[engine].append(result)
            said = ", ".join(f"{e} {r[-1].images / r[-1].seconds:,.0f}" for e, r in results.items())
            progress(f"  round {number + 1} of {count}: {said} images/s")
        return results

    def _count(self, engine: str) -> int:
        return max(200, int(self._args.tasks * _SHARES[engine]))

    def _contender(self, engine: str, store: Path, concurrency: int, count: int) -> Result:
        with _new_folder(store, keep=self._keep) as out:
            order = Order(engine, str(self._urls), count, str(out), concurrency)
            program = Path(__file__).with_name("contenders.py")
            with child([sys.executable, program], self._cores.client, stdin=-1, stdout=-1) as process:
                said, _ = process.communicate(json.dumps(asdict(order)) + "\n", timeout=_RUN_S)
            if not said:
                raise RigError(f"{engine} ended without a result")
            result = Result(**json.loads(said))
            if result.images != count:
                raise RigError(f"{engine} wrote {result.images:,} of {count:,} files")
            return result

    def _worker(self, store: Path, count: int) -> Result:
        """The worker as it is shipped: its supervisor starts it, it runs until the queue is empty."""
        with _new_folder(store, keep=self._keep) as out, ExitStack() as stack:
            settings = Settings(
                redis=self._redis_url,
                dataset="bench",
                worker=WorkerSettings(
                    store_dir=out / "store", processes=1, concurrency=self._args.concurrency
                ),
                # nginx is one host; what the limit on it costs is measured, what it saves nginx is not.
                fetch=FetchSettings(allow_networks=("127.0.0.0/8",), per_host=self._args.concurrency),
            )
            words = stack.enter_context((out / "log").open("w+"))
            client = stack.enter_context(connect(settings.redis, name="bench"))
            client.flushall()
            _feed_first(self._urls, out / "urls", count, settings)
            logger = log.configure(settings.log, words)
            group = WorkerGroup(settings, logger, until_empty=True, stderr=words.buffer)
            stack.callback(_end, group)
            with on_core(self._cores.client):
                group.tend()
            result = _timed(client, Keys(settings.dataset), group, count)
            wait_for(lambda: _ended(group), within_s=30, what="the worker's end")
            files = sum(1 for path in (out / "store").rglob("*.jpg"))
            if group.replaced or files != count:
                words.seek(0)
                raise RigError(f"the worker stored {files:,} of {count:,}: {words.read()[-2000:]}")
            return result


def _feed_first(urls: Path, part: Path, count: int, settings: Settings) -> None:
    with urls.open("rb") as source, part.open("wb") as target:
        target.writelines(line for _, line in zip(range(count), source, strict=False))
    feed(part, settings)


def _timed(client: redis.Redis, keys: Keys, group: WorkerGroup, count: int) -> Result:
    """From the first claim to the last ack, as Redis shows them; both are seen up to `_POLL_S` late."""
    process = psutil.Process(group.pids[0])
    wait_for(lambda: _ended(group) or client.llen(keys.task) < count, within_s=30, what="the first claim")
    started, cpu_s = time.perf_counter(), sum(process.cpu_times()[:2])
    deadline = started + _RUN_S
    while True:
        stored, failed = (int(value or 0) for value in client.mget(keys.stored, keys.failed))
        if stored + failed >= count:
            break
        if _ended(group) or time.perf_counter() > deadline:
            raise RigError(f"the worker stopped at {stored + failed:,} of {count:,} tasks")
        time.sleep(_POLL_S)
    seconds = time.perf_counter() - started
    if failed:
        raise RigError(f"{failed:,} fetches of the worker failed")
    return Result(seconds, sum(process.cpu_times()[:2]) - cpu_s, stored)


def _ended(group: WorkerGroup) -> bool:
    group.tend()
    return group.ended


def _end(group: WorkerGroup) -> None:
    group.stop()
    group.wait(1)


@contextmanager
def _new_folder(store: Path, *, keep: bool) -> Iterator[Path]:
    """A folder for a run, gone afterwards unless it is to be kept.

    On disk it is: ext4 looks long for inodes where many were deleted seconds ago, so a run would pay for
    the one before. For the same reason that one's files are written out first.
    """
    out = Path(tempfile.mkdtemp(dir=store))
    os.sync()
    try:
        yield out
    finally:
        if not keep:
            shutil.rmtree(out, ignore_errors=True)


def main() -> int:
    """Measure and print; EXIT_FAIL below a floor."""
    args = _arguments()
    cores = Cores.of_this_machine()
    needs_bytes = int(args.tasks * _BYTES_A_FILE) + 2**26
    with ExitStack() as stack:
        stack.enter_context(on_core(cores.server))
        memory, memory_kind = stack.enter_context(folder(in_memory=True, needs_bytes=needs_bytes))
        server = stack.enter_context(web(memory, cores.server))
        private = stack.enter_context(PrivateRedis())
        with connect(private.url, name="bench") as client:
            facts = machine(f"{client.info('server')['redis_version']}")
        urls = memory / "urls.txt"
        urls.write_text("".join(f"{url}\n" for url in server.urls(args.tasks)), encoding="utf-8")
        progress(f"{server.name}; {cores.note}; files on {memory_kind}; {args.tasks:,} tasks a run")
        race = Race(urls, private.url, cores, args)
        race.tune(memory)
        results = race.rounds(memory, args.rounds, ("worker", "libcurl", "requests"))
        on_disk: dict[str, list[Result]] = {}
        disk_kind = ""
        if args.disk_rounds:
            disk, disk_kind = stack.enter_context(
                folder(in_memory=False, needs_bytes=2 * args.disk_rounds * needs_bytes)
            )
            progress(f"files on {disk_kind}")
            on_disk = race.rounds(disk, args.disk_rounds, ("worker", "libcurl"), keep=True)
    floors = (FLOOR_LIBCURL, FLOOR_REQUESTS) if server.is_nginx else (None, None)
    ratios = [
        Ratio("worker / best bare libcurl loop", _ratio(results, "libcurl"), floors[0]),
        Ratio("worker / requests thread pool", _ratio(results, "requests"), floors[1]),
        Ratio("CPU an image, bare loop / worker", _cpu_ratio(results, "libcurl")),
    ]
    if on_disk:
        ratios.append(Ratio("worker / bare loop, on disk", _ratio(on_disk, "libcurl")))
    if args.json:
        _print_json(facts, server.name, memory_kind, race, results, on_disk, ratios)
    else:
        _print_text(facts, server.name, cores, memory_kind, race, results, on_disk, disk_kind, ratios)
        if not server.is_nginx:
            print(
                "\nNOT JUDGED: nginx is not installed (Debian/Ubuntu: apt-get install nginx-light); the floors"
            )
            print("are set for it. The simulated web has pictures of other sizes and is itself a limit.")
    return EXIT_FAIL if any(ratio.verdict == "FAIL" for ratio in ratios) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=20_000, metavar="N", help="URLs a run (default: 20000)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds on tmpfs (default: 5)")
    parser.add_argument("--disk-rounds", type=int, default=2, metavar="N", help="and on disk (default: 2)")
    parser.add_argument("--concurrency", type=int, default=64, metavar="N", help="the worker's (default: 64)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    if args.tasks < 1000 or args.rounds < 1 or args.disk_rounds < 0 or args.concurrency < 1:
        parser.error("at least 1000 tasks, 1 round, 0 disk rounds, concurrency 1")
    return args


def _speeds(results: list[Result]) -> list[float]:
    return [result.images / result.seconds for result in results]


def _cpu_us(results: list[Result]) -> list[float]:
    return [1e6 * result.cpu_s / result.images for result in results]


def _ratio(results: dict[str, list[Result]], other: str) -> tuple[float, ...]:
    return paired(_speeds(results["worker"]), _speeds(results[other]))


def _cpu_ratio(results: dict[str, list[Result]], other: str) -> tuple[float, ...]:
    return paired(_cpu_us(results[other]), _cpu_us(results["worker"]))


def _print_text(facts, server, cores, memory_kind, race, results, on_disk, disk_kind, ratios) -> None:
    print(", ".join(f"{name}: {value}" for name, value in facts.items()))
    print(f"server: {server}; {cores.note}; best concurrency: {race.best}; median [min-max] of the rounds\n")
    names = {
        "worker": "worker (claim, fetch, check, store, ack)",
        "libcurl": "bare libcurl loop that writes files",
        "requests": "requests thread pool that writes files",
    }
    for place, found in ((memory_kind, results), (disk_kind, on_disk)):
        if not found:
            continue
        print(f"files on {place}:")
        for engine, rounds in found.items():
            print(speeds(names[engine], _speeds(rounds), "images/s"))
        for engine, rounds in found.items():
            print(speeds(f"  CPU an image, {engine}", _cpu_us(rounds), "µs"))
    print()
    for ratio in ratios:
        print(ratio.line())


def _print_json(facts, server, memory_kind, race, results, on_disk, ratios) -> None:
    def rounds(found: dict[str, list[Result]]) -> dict[str, list[dict[str, float]]]:
        return {engine: [asdict(result) for result in runs] for engine, runs in found.items()}

    report = {
        "machine": facts,
        "server": server,
        "files_on": memory_kind,
        "concurrency": race.best,
        "results": rounds(results),
        "results_on_disk": rounds(on_disk),
        "ratios": {ratio.name: ratio.to_json() for ratio in ratios},
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    sys.exit(run(main))
