"""What the rows of fetch.py share: running a worker or a contender into a folder."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import psutil
import redis

from bench.contenders import Order, Result
from bench.rig import (
    Cores,
    NotHere,
    Ratio,
    RigError,
    child,
    filesystem,
    on_core,
    paired,
    progress,
    speeds,
    wait_for,
)
from bench.rows import Row
from bench.webs import DEAD, PICTURE_BYTES, check_pictures, name_server
from dlconsole import log
from dlconsole.services.connection import connect
from dlconsole.services.feeder import feed
from dlconsole.services.keys import Keys
from dlconsole.services.supervisor import WorkerGroup
from dlconsole.settings import (
    DnsSettings,
    FeedSettings,
    FetchSettings,
    RetrySettings,
    Settings,
    WorkerSettings,
)

LOOPBACK: Final = ("127.0.0.0/8",)
POLL_S: Final = 0.005
RUN_S: Final = 120.0
_RESOLVER: Final = "127.0.53.53"
_FROM_LOOPBACK: Final = FetchSettings(allow_networks=LOOPBACK)
_DNS_AS_SHIPPED: Final = DnsSettings()


def compared(name: str, ratio: Ratio, runs: dict[str, list[Result]], notes: Sequence[str] = ()) -> Row:
    """A row with each contender's speed and CPU time behind it."""
    lines = [speeds(who, [r.speed for r in results], "images/s") for who, results in runs.items()]
    lines += [
        speeds(f"  CPU an image, {who}", [r.cpu_us for r in results], "µs")
        for who, results in runs.items()
        if all(r.cpu_s for r in results)
    ]
    figures = {"runs": {who: [asdict(r) for r in results] for who, results in runs.items()}}
    return Row(name, ratio.name, ratio, lines=(*lines, *notes), figures=figures)


def by_speed(runs: dict[str, list[Result]], ours: str, theirs: str) -> tuple[float, ...]:
    """Our speed by theirs, round by round."""
    return paired([r.speed for r in runs[ours]], [r.speed for r in runs[theirs]])


def by_cpu(runs: dict[str, list[Result]], ours: str, theirs: str) -> tuple[float, ...]:
    """Our CPU time an image by theirs, round by round."""
    return paired([r.cpu_us for r in runs[ours]], [r.cpu_us for r in runs[theirs]])


def in_turns(contenders: dict[str, Callable[[], Result]], rounds: int) -> dict[str, list[Result]]:
    """Every contender once a round, in turns: A B C, C B A, …"""
    runs: dict[str, list[Result]] = {who: [] for who in contenders}
    for number in range(rounds):
        for who in list(contenders)[:: 1 if number % 2 == 0 else -1]:
            runs[who].append(contenders[who]())
        said = ", ".join(f"{who} {results[-1].speed:,.0f}" for who, results in runs.items())
        progress(f"  round {number + 1} of {rounds}: {said} images/s")
    return runs


@dataclass(frozen=True, slots=True)
class Errand:
    """What a worker is given to do: the first `count` of the URLs. Names that are dead fail, and are not tried
    again; so may `may_lose` others. `fed` is a list of just these URLs with more columns, to be fed in their
    place; `sections` are further sections of the settings.
    """

    urls: Path
    count: int
    concurrency: int = 64
    fetch: FetchSettings = _FROM_LOOPBACK
    dns: DnsSettings = _DNS_AS_SHIPPED
    may_lose: int = 0
    fed: Path | None = None
    sections: dict[str, Any] = field(default_factory=dict)

    def good(self) -> list[str]:
        """The URLs that have a picture."""
        lines = self.urls.read_text(encoding="utf-8").splitlines()[: self.count]
        return [url for url in lines if f"//{DEAD}" not in url]


@dataclass(frozen=True, slots=True)
class Running:
    """A worker that has been started, and all that it writes to."""

    client: redis.Redis
    keys: Keys
    group: WorkerGroup
    folder: Path
    words: IO[str]
    let_memory_go: Callable[[], None]
    """To be called when the files come."""

    @property
    def counts(self) -> tuple[int, int]:
        """Stored, failed for good."""
        stored, failed = self.client.mget(self.keys.stored, self.keys.failed)
        return int(stored or 0), int(failed or 0)

    @property
    def ended(self) -> bool:
        """Whether it has."""
        self.group.tend()
        return self.group.ended

    def broken(self, what: str) -> RigError:
        """That, what the fetches failed of, and what the worker complained of."""
        items = [json.loads(item) for item in self.client.lrange(self.keys.error, 0, -1)]
        kinds = Counter(item["error_msg"].split(": ")[-1] for item in items)
        self.words.seek(0)
        words = [line.strip() for line in self.words if '"level": "info"' not in line]
        often = [f"{count:,} {kind}" for kind, count in kinds.most_common(3)]
        return RigError("; ".join([what, *often, *words[-3:]]))


@dataclass(frozen=True, slots=True)
class Bench:
    """What every row stands on. `usable` are all cores that it may use; `memory` is a folder in memory where there is one; `pictures` what the webs
    serve.
    """

    cores: Cores
    usable: tuple[int, ...]
    redis_url: str
    memory: Path
    memory_kind: str
    pictures: Path
    args: argparse.Namespace

    def url_file(self, name: str, urls: Sequence[str]) -> Path:
        """A list of URLs."""
        path = self.memory / f"{name}.txt"
        path.write_text("".join(f"{url}\n" for url in urls), encoding="utf-8")
        return path

    def contender(self, order: Order, *, prefix: Sequence[str] = (), keep: bool = False) -> Result:
        """Run one, into a folder of its own below `order.store`. Every good URL's file must be there."""
        errand = Errand(Path(order.urls), order.count)
        if order.redis:
            with connect(order.redis, name="bench") as client:
                client.flushall()
                client.lpush("least_task", *[json.dumps({"img_url": url}) for url in errand.good()])
        with new_folder(Path(order.store), keep=keep) as out:
            program = Path(__file__).with_name("contenders.py")
            arguments = [*prefix, sys.executable, program]
            with (
                warm_memory(self.memory, order.count) as let_go,
                child(arguments, self.cores.client, stdin=-1, stdout=-1) as process,
            ):
                words = json.dumps(asdict(order) | {"store": str(out)})
                let_go()
                said, _ = process.communicate(words + "\n", timeout=RUN_S)
            if not said:
                raise RigError(f"{order.engine} ended without a result")
            check_pictures(out.glob("*.jpg"), errand.good(), self.pictures)
            return Result(**json.loads(said))

    def worker(self, errand: Errand, store: Path, *, keep: bool = False) -> Result:
        """The worker as it is shipped: its supervisor starts it, it runs until the queue is empty. Timed from
        its first claim to the ack of the last picture.
        """
        good = errand.good()
        with self.running(errand, store, self.cores.client, keep=keep) as running:
            result = timed(running, errand.count, len(good), errand.may_lose)
            self.finish(running, errand)
            return result

    def finish(self, running: Running, errand: Errand) -> None:
        """Wait for the worker's end, and compare every file. Raises RigError where one is missing or other."""
        wait_for(lambda: running.ended, within_s=60, what="the worker's end")
        good = errand.good()
        stored, failed = running.counts
        lost = len(good) - stored
        if running.group.replaced or stored + failed != errand.count or lost > errand.may_lose:
            raise running.broken(f"the worker stored {stored:,} and failed {failed:,} of {errand.count:,}")
        check_pictures((running.folder / "store").rglob("*.jpg"), good, self.pictures, lost=lost)

    @contextmanager
    def running(
        self, errand: Errand, store: Path, *cores: int, keep: bool = False, redis_url: str = ""
    ) -> Iterator[Running]:
        """Start a worker process on each of these cores; ended on the way out."""
        with new_folder(store, keep=keep) as out, ExitStack() as stack:
            settings = Settings(
                redis=redis_url or self.redis_url,
                dataset="bench",
                worker=WorkerSettings(
                    store_dir=out / "store", processes=len(cores), concurrency=errand.concurrency
                ),
                fetch=errand.fetch,
                dns=errand.dns,
                feed=FeedSettings(layout="flat"),  # one folder, as the contenders write
                retry=RetrySettings(max_attempts=1),  # a dead name is to end within the run
                **errand.sections,
            )
            words = stack.enter_context((out / "log").open("w+"))
            client = stack.enter_context(connect(settings.redis, name="bench"))
            client.flushall()
            _feed(errand, out / "urls", settings)
            logger = log.configure(settings.log, words)
            group = WorkerGroup(settings, logger, until_empty=True, stderr=words.buffer)
            stack.callback(_end, group)
            let_go = stack.enter_context(warm_memory(self.memory, errand.count))
            with on_core(*cores):
                group.tend()
            for pid, core in zip(group.pids, cores, strict=True):  # before it has a second thread
                os.sched_setaffinity(pid, {core})
            yield Running(client, Keys(settings.dataset), group, out, words, let_go)


def timed(running: Running, count: int, good: int, may_lose: int) -> Result:
    """From the first claim to the last picture's ack, as Redis shows them; both are seen up to `POLL_S` late."""
    process = psutil.Process(running.group.pids[0])
    wait_for(
        lambda: running.client.llen(running.keys.task) < count or running.ended,
        within_s=30,
        what="the first claim",
    )
    running.let_memory_go()
    began, cpu_before_s = time.perf_counter(), sum(process.cpu_times()[:2])
    last, cpu_s, stored, failed = began, 0.0, 0, 0
    while stored < good and stored + failed < count:
        if running.ended or time.perf_counter() > began + RUN_S:
            raise running.broken(f"the worker stopped at {stored:,} of {good:,} pictures")
        time.sleep(POLL_S)
        before = stored
        stored, failed = running.counts
        if stored > before:
            last, cpu_s = time.perf_counter(), sum(process.cpu_times()[:2]) - cpu_before_s
    if stored < good - may_lose:
        raise running.broken(f"the worker stored {stored:,} of {good:,} pictures")
    return Result(last - began, cpu_s, stored)


def _feed(errand: Errand, part: Path, settings: Settings) -> None:
    if errand.fed is not None:
        feed(errand.fed, settings)
        return
    with errand.urls.open("rb") as source, part.open("wb") as target:
        target.writelines(line for _, line in zip(range(errand.count), source, strict=False))
    feed(part, settings)


def _end(group: WorkerGroup) -> None:
    group.stop()
    group.wait(1)


@contextmanager
def system_resolver(bench: Bench, timeout_s: int = 5) -> Iterator[list[str]]:
    """A name server of the rig that the system's resolver asks: the words before a command for which it does.
    Raises NotHere where that cannot be had.
    """
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        raise NotHere("another resolv.conf for one process takes root and unshare")
    settings = bench.memory / "resolv.conf"
    settings.write_text(f"nameserver {_RESOLVER}\noptions timeout:{timeout_s} attempts:1\n", encoding="utf-8")
    with name_server(bench.cores.server, f"{_RESOLVER}:53"):
        mount = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
        yield ["unshare", "--mount", "sh", "-c", mount, str(settings)]


@contextmanager
def warm_memory(place: Path, pictures: int) -> Iterator[Callable[[], None]]:
    """Take the memory that so many files need, on a disk as well, until the function is called: when they come.

    A virtual machine may give memory that was free for a second or two back to its host, and has to ask for
    each page again: the same 41 KB file then takes 60 to 200 µs to write instead of 20, and who has the bad
    luck to start later pays for it.
    """
    ballast = place / "ballast"
    if filesystem(place) == "tmpfs":
        with ballast.open("wb") as file:
            for _ in range(int(pictures * PICTURE_BYTES * 1.15) >> 20):
                file.write(bytes(1 << 20))

    def let_go() -> None:
        ballast.unlink(missing_ok=True)

    try:
        yield let_go
    finally:
        let_go()


@contextmanager
def new_folder(store: Path, *, keep: bool) -> Iterator[Path]:
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
