"""The rows of images a second: our whole worker beside what only fetches and writes.

One core has the servers (nginx, Redis), the other one the client. The worker claims from a real Redis,
fetches, checks, stores and acks; the others only fetch and write files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

from bench import fetch_img2dataset as img2dataset
from bench.contenders import Order, Result, missing
from bench.fetch_rig import LOOPBACK, Bench, Errand, by_cpu, by_speed, compared, in_turns
from bench.rig import Ratio, folder, progress
from bench.rows import Row
from bench.webs import PICTURE_BYTES, nginx, picture_path
from dlconsole.settings import FetchSettings

TMPFS, DISK, IMG2DATASET, AIOHTTP = "tmpfs", "disk", "img2dataset", "aiohttp"
LEAST: Final = "least worker"
"""The bare loop that has a queue and renames: printed beside it, so that one sees what is possible at all."""
ROWS: Final = (TMPFS, DISK, IMG2DATASET, AIOHTTP)
_WHAT: Final = {
    TMPFS: "worker / best bare libcurl loop, on tmpfs",
    DISK: "worker / best bare libcurl loop, on disk",
    IMG2DATASET: "worker / img2dataset",
    AIOHTTP: "worker / aiohttp loop without queue",
}
_FLOORS: Final = {TMPFS: 0.6, DISK: 0.75, IMG2DATASET: 12.0, AIOHTTP: 1.3}
_VARIANTS: Final = {
    LEAST: (("queue", 32), ("queue", 64)),
    "libcurl": (("perform", 16), ("perform", 32), ("perform", 64), ("epoll", 32), ("epoll", 64)),
    "aiohttp": tuple((engine, n) for engine in ("aiohttp", "aiohttp_uvloop") for n in (8, 16, 32)),
    "urllib3": (("urllib3", 4), ("urllib3", 8), ("urllib3", 16)),
    "requests": (("requests", 4), ("requests", 8), ("requests", 16)),
    "httpx": (("httpx", 4), ("httpx", 8), ("httpx", 16)),
    IMG2DATASET: ((IMG2DATASET, 4), (IMG2DATASET, 16), (IMG2DATASET, 64)),
}
"""What each contender is tried with before the rounds: engine and concurrency."""
_SHARES: Final = {"aiohttp": 0.4, "urllib3": 0.2, "requests": 0.15, "httpx": 0.06, IMG2DATASET: 0.1}
"""Part of the tasks that each one gets: a slow one needs fewer for a figure as good."""
_LEAST: Final = 1000
_BESIDE: Final = ("urllib3", "requests", "httpx")
"""Printed beside aiohttp; no floor."""


class Race:
    """Runs one contender at a time against one server."""

    def __init__(self, bench: Bench, port: int) -> None:
        self.best: dict[str, tuple[str, int]] = {}
        self.why: dict[str, str] = {}
        """Of those that cannot run here."""
        self._bench = bench
        self._tasks = bench.args.tasks
        base = f"http://127.0.0.1:{port}"
        self._urls = bench.url_file("urls", [base + picture_path(i) for i in range(self._tasks)])

    def tune(self, families: list[str]) -> None:
        """Find each contender's best variant on the way; it is also the warm-up."""
        self.worker(self._bench.memory, self._tasks // 4)
        for family in families:
            variants = self._variants(family)
            if not variants:
                continue
            count = max(_LEAST, self._count(family) // 2)
            turns = variants if family == IMG2DATASET else (*variants, *reversed(variants))
            speed = dict.fromkeys(variants, 0.0)
            for variant in turns:
                result = self._run(variant, self._bench.memory, count)
                speed[variant] = max(speed[variant], result.speed)
            self.best[family] = max(speed, key=speed.__getitem__)
            found = ", ".join(f"{engine} {n}: {value:,.0f}" for (engine, n), value in speed.items())
            progress(f"  {family:<12} {found} images/s")

    def _variants(self, family: str) -> tuple[tuple[str, int], ...]:
        if family == IMG2DATASET:
            self.why[family] = img2dataset.why_not(self._bench.args.img2dataset)
            return () if self.why[family] else _VARIANTS[family]
        lacks = {engine: missing(engine) for engine, _ in _VARIANTS[family]}
        usable = tuple(variant for variant in _VARIANTS[family] if not lacks[variant[0]])
        if not usable:
            self.why[family] = f"no {next(iter(lacks.values()))} here: pip install -r requirements/bench.txt"
        return usable

    def rounds(self, store: Path, families: list[str], count: int, *, keep: bool) -> dict[str, list[Result]]:
        """`count` rounds of the worker and each contender that can run here."""
        contenders = {"worker": partial(self.worker, store, self._tasks, keep=keep)}
        for family in families:
            if family in self.best:
                contenders[family] = partial(
                    self._run, self.best[family], store, self._count(family), keep=keep
                )
        return in_turns(contenders, count)

    def _count(self, family: str) -> int:
        return max(_LEAST, int(self._tasks * _SHARES.get(family, 1.0)))

    def worker(self, store: Path, count: int, *, keep: bool = False) -> Result:
        """One run of ours."""
        n = self._bench.args.concurrency
        # nginx is one host; what the limit on it costs is measured, what it saves nginx is not.
        fetch = FetchSettings(allow_networks=LOOPBACK, per_host=n)
        return self._bench.worker(Errand(self._urls, count, n, fetch), store, keep=keep)

    def _run(self, variant: tuple[str, int], store: Path, count: int, *, keep: bool = False) -> Result:
        engine, n = variant
        queue = self._bench.redis_url if engine == "queue" else ""
        order = Order(engine, str(self._urls), count, str(store), n, redis=queue)
        if engine == IMG2DATASET:
            return img2dataset.run(self._bench, self._bench.args.img2dataset, order, keep=keep)
        return self._bench.contender(order, keep=keep)


def measure(bench: Bench, wanted: set[str]) -> Iterator[Row]:
    """The rows of `ROWS` that are wanted. Raises RigError."""
    families = ["libcurl", LEAST] if wanted & {TMPFS, DISK} else []
    families += ["aiohttp", *_BESIDE] if AIOHTTP in wanted else []
    families += [IMG2DATASET] if IMG2DATASET in wanted else []
    with ExitStack() as stack:
        race = Race(bench, stack.enter_context(nginx(bench.pictures, bench.cores.server)))
        race.tune(families)
        if wanted - {DISK}:
            runs = race.rounds(bench.memory, families, bench.args.rounds, keep=False)
            yield from _in_memory(race, runs, wanted)
        if DISK in wanted:
            yield _on_disk(bench, race)


def _in_memory(race: Race, runs: dict[str, list[Result]], wanted: set[str]) -> Iterator[Row]:
    for row, family in ((TMPFS, "libcurl"), (IMG2DATASET, IMG2DATASET), (AIOHTTP, "aiohttp")):
        if row not in wanted:
            continue
        if family not in runs:
            yield Row(row, _WHAT[row], why=race.why[family])
            continue
        shown = {who: runs[who] for who in ("worker", family)}
        notes = _notes(race, runs, family)
        if row == TMPFS:
            notes += _least(runs)
            shown[LEAST] = runs[LEAST]
        if row == AIOHTTP:
            notes += _beside(race, runs)
            shown |= {who: runs[who] for who in _BESIDE if who in runs}
        ratio = Ratio(_WHAT[row], by_speed(runs, "worker", family), _FLOORS[row])
        yield compared(row, ratio, shown, notes)


def _notes(race: Race, runs: dict[str, list[Result]], family: str) -> list[str]:
    engine, n = race.best[family]
    notes = [f"best of those tried: {engine}, concurrency {n}"]
    if all(result.cpu_s for result in runs[family]):
        notes.append(Ratio(f"CPU an image, {family} / worker", by_cpu(runs, family, "worker")).line())
    return notes


def _least(runs: dict[str, list[Result]]) -> list[str]:
    return [
        Ratio(f"{LEAST} / bare libcurl loop", by_speed(runs, LEAST, "libcurl")).line(),
        Ratio(f"worker / {LEAST}", by_speed(runs, "worker", LEAST)).line(),
    ]


def _beside(race: Race, runs: dict[str, list[Result]]) -> list[str]:
    return [
        Ratio(f"worker / {family}", by_speed(runs, "worker", family)).line()
        if family in runs
        else f"{family}: not measured: {race.why[family]}"
        for family in _BESIDE
    ]


def _on_disk(bench: Bench, race: Race) -> Row:
    needs_bytes = int(3.3 * bench.args.disk_rounds * bench.args.tasks * PICTURE_BYTES * 1.2)
    with folder(in_memory=False, needs_bytes=needs_bytes) as (disk, kind):
        progress(f"files on {kind}")
        runs = race.rounds(disk, ["libcurl", LEAST], bench.args.disk_rounds, keep=True)
    ratio = Ratio(_WHAT[DISK], by_speed(runs, "worker", "libcurl"), _FLOORS[DISK])
    notes = [f"files on {kind}", *_notes(race, runs, "libcurl"), *_least(runs)]
    return compared(DISK, ratio, runs, notes)
