"""The whole path on a simulated web: a private Redis, a list fed, workers on it, watched to the end.

Everything lives in one temporary folder and in child processes that end with this one; nothing is
left behind, unless a folder was named to keep the images in.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from dlconsole import log
from dlconsole.demo.web import Shares, SimulatedWeb, WebConfig, demo_urls
from dlconsole.errors import RedisUnavailable, UsageError
from dlconsole.model import FleetSnapshot
from dlconsole.services.connection import connect
from dlconsole.services.feeder import feed
from dlconsole.services.fleet import FleetReader
from dlconsole.services.keys import Keys
from dlconsole.services.private_redis import PrivateRedis
from dlconsole.services.supervisor import WorkerGroup
from dlconsole.settings import FeedSettings, FetchSettings, RetrySettings, Settings, WorkerSettings
from dlconsole.workers.partial import PARTIAL
from dlconsole.workers.places import LEDGER

_STOP_S: Final = 5.0
_TEND_S: Final = 0.1
_POLL_S: Final = 0.25
MAX_BYTES: Final = 2 * 2**20
"""The byte cap of the demo's fetches, below the simulated web's oversized answers."""
_HOSTS: Final = tuple(f"127.0.0.{i}" for i in range(1, 65))
"""The hosts of the simulated web, so that it is none of them that sets the pace."""
_STALLED_S: Final = 60.0
"""The demo gives up when nothing has moved for this long."""


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """What to run. `watched` slows the web down, so that there is something to watch."""

    tasks: int = 5000
    urls: Path | None = None
    shares: Shares = Shares()  # noqa: RUF009  (frozen)
    seed: int = 0
    processes: int = 2
    concurrency: int = 64
    store: Path | None = None
    watched: bool = False


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What came of it. `accounted`: every task is stored or failed, once, in every place that counts."""

    tasks: int
    stored: int
    failed: int
    kinds: dict[str, int]
    files: int
    file_bytes: int
    seconds: float
    workers_replaced: int
    legacy_counters: dict[str, int]
    error_list: int
    left_over: int
    bad_rows: int

    @property
    def accounted(self) -> bool:
        """Whether nothing is lost and nothing counted twice."""
        return (
            self.stored + self.failed == self.tasks > 0
            and self.left_over == 0
            and self.error_list == self.failed == sum(self.kinds.values())
            and self.files <= self.stored  # a URL that stands twice in a list is stored twice in one place
            and (self.files > 0 or self.stored == 0)
        )

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        speed = self.stored / self.seconds if self.seconds else 0.0
        return asdict(self) | {"images_per_s": round(speed, 1), "accounted": self.accounted}


class Demo:
    """The demo's parts, from `with` to its end: start, feed, watch, stop, leave nothing behind."""

    def __init__(self, plan: DemoPlan, base: Settings) -> None:
        """`base` gives what the plan does not say. Raises UsageError on a store that is not empty."""
        self._plan = plan
        self._base = base
        self._stack = ExitStack()
        self._started = 0.0
        if plan.store is not None:
            _check_store(plan.store)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            redis = stack.enter_context(PrivateRedis())
            # In the server's folder, whose watcher removes it also when this process is killed.
            self._folder = redis.directory / "demo"
            self._folder.mkdir()
            web = stack.enter_context(SimulatedWeb(self._web_config()))
            self.settings = self._settings(redis.url, web)
            self.fed = feed(self._url_list(web), self.settings)
            errors = stack.enter_context((self._folder / "workers.log").open("wb"))
            logger = log.configure(
                self.settings.log, stack.enter_context((self._folder / "demo.log").open("w"))
            )
            self.group = WorkerGroup(self.settings, logger, until_empty=True, stderr=errors)
            stack.callback(self._stop_workers)
            self._stack = stack.pop_all()
        self._started = time.monotonic()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()

    @contextmanager
    def tended(self) -> Iterator[None]:
        """Keep the workers running from a thread, for as long as somebody else has this one."""
        over = threading.Event()

        def tend() -> None:
            while not over.wait(_TEND_S):
                self.group.tend()

        thread = threading.Thread(target=tend, name="demo-tend")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    @property
    def quit_note(self) -> str:
        """What leaving the console ends, in words for a question; '' when there is nothing left to end."""
        return "" if self.group.ended else "The demo ends with the console: its workers, its Redis, its web."

    def watch(self, on_snapshot: Callable[[FleetSnapshot], None], stop: threading.Event) -> DemoResult | None:
        """Run to the end, with a snapshot now and then; the result, or None once `stop` is set."""
        return asyncio.run(self._watch(on_snapshot, stop))

    async def _watch(
        self, on_snapshot: Callable[[FleetSnapshot], None], stop: threading.Event
    ) -> DemoResult | None:
        reader = FleetReader(self.settings)
        moved_at, done, next_poll = time.monotonic(), -1, 0.0
        try:
            while not self.group.ended:
                if stop.is_set():
                    return None
                self.group.tend()
                now = time.monotonic()
                if now >= next_poll:
                    next_poll = now + _POLL_S
                    snapshot = await reader.read_snapshot()
                    on_snapshot(snapshot)
                    if snapshot.counts.done != done:
                        moved_at, done = now, snapshot.counts.done
                    if now - moved_at > _STALLED_S:
                        raise RedisUnavailable(
                            f"the demo stands still: {done:,} tasks done, none in {_STALLED_S:.0f} s"
                            f"\n{self._last_words()}"
                        )
                await asyncio.sleep(_TEND_S)
            seconds = time.monotonic() - self._started
            snapshot = await reader.read_snapshot()
            on_snapshot(snapshot)
        finally:
            await reader.close()
        return self.result(snapshot, seconds)

    def result(self, snapshot: FleetSnapshot, seconds: float) -> DemoResult:
        """Count what is there: in Redis, and on disk."""
        counts = snapshot.counts
        keys = Keys(self.settings.dataset)
        with connect(self.settings.redis, name="dlconsole-demo") as client:
            errors = client.lrange(keys.error, 0, -1)
            legacy = {key: int(client.get(key) or 0) for key in (keys.stored, keys.failed, keys.fed)}
        sizes = [path.stat().st_size for path in _files(self.settings.worker.store_dir)]
        return DemoResult(
            tasks=self.fed.tasks,
            stored=counts.stored,
            failed=counts.failed,
            kinds=dict(Counter(map(_kind_of, errors)).most_common()),
            files=len(sizes),
            file_bytes=sum(sizes),
            seconds=round(seconds, 2),
            workers_replaced=self.group.replaced,
            legacy_counters=legacy,
            error_list=len(errors),
            left_over=counts.outstanding,
            bad_rows=self.fed.bad,
        )

    def _web_config(self) -> WebConfig:
        latency_s = 0.25 if self._plan.watched else 0.02
        return WebConfig(
            host=_HOSTS[0],
            more_hosts=_HOSTS[1:],
            shares=self._plan.shares,
            seed=self._plan.seed,
            latency_s=latency_s,
            oversized_bytes=2 * MAX_BYTES,
            tls=self._plan.urls is not None,
        )

    def _settings(self, redis_url: str, web: SimulatedWeb) -> Settings:
        """The web is reached directly at its own loopback addresses; a real list through it as a proxy."""
        fetch = FetchSettings(deadline_s=3.0, max_bytes=MAX_BYTES, allow_networks=("127.0.0.0/8",))
        if self._plan.urls is not None:
            proxied = {"proxy": f"http://{web.address}", "ca_file": web.ca_path, "allow_networks": ()}
            fetch = fetch.model_copy(update=proxied)
        plan = self._plan
        # Only how the console and the logs look is the user's: the rest must not reach the demo, least of
        # all a proxy.
        return Settings(
            redis=redis_url,
            dataset="demo",
            colour=self._base.colour,
            console=self._base.console,
            log=self._base.log,
            worker=WorkerSettings(
                store_dir=plan.store or self._folder / "store",
                processes=plan.processes,
                concurrency=plan.concurrency,
                heartbeat_s=1.0,
                drain_s=1.0,
            ),
            fetch=fetch,
            retry=RetrySettings(max_attempts=2, base_s=1.0),
            feed=FeedSettings(done_file=self._folder / "done_part.txt"),
        )

    def _url_list(self, web: SimulatedWeb) -> Path:
        if self._plan.urls is not None:
            return self._plan.urls
        path = self._folder / "urls.txt"
        first, *more = web.origins
        path.write_text("".join(f"{url}\n" for url in demo_urls(first, self._plan.tasks, *more)))
        return path

    def _stop_workers(self) -> None:
        self.group.stop()
        self.group.wait(_STOP_S)  # nothing of the demo is worth a longer wait

    def _last_words(self) -> str:
        lines = (self._folder / "workers.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-5:])


def _check_store(store: Path) -> None:
    """Raises UsageError where images cannot be kept there, or others lie there already."""
    try:
        store.mkdir(parents=True, exist_ok=True)
        if any(store.iterdir()):
            raise UsageError(f"--store {store}: is not empty; name a new folder")
    except OSError as error:
        raise UsageError(f"--store {store}: {error.strerror}") from error


def _files(store: Path) -> Iterator[Path]:
    files = (path for path in store.rglob("*") if path.is_file())
    return (path for path in files if not {PARTIAL, LEDGER} & set(path.relative_to(store).parts[:2]))


def _kind_of(item: bytes) -> str:
    """The failure kind at the head of an error item's message."""
    try:
        return str(msgspec.json.decode(item)["error_msg"]).partition(":")[0]
    except (msgspec.DecodeError, KeyError, TypeError):
        return "unreadable"
