"""What the worker's tests share: settings for one store, the simulated web, workers in threads."""

from __future__ import annotations

import io
import json
import resource
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from dlconsole import log
from dlconsole.demo.web import SimulatedWeb, WebConfig
from dlconsole.model import Failure, LedgerLine
from dlconsole.services.keys import Keys
from dlconsole.settings import Settings
from dlconsole.workers.downloader import Downloader

KEYS = Keys("ds")


@pytest.fixture(scope="session")
def web() -> Iterator[SimulatedWeb]:
    """A simulated web without added latency; every behaviour is at `/as/<behaviour>/…`."""
    with SimulatedWeb(WebConfig(latency_s=0.0, oversized_bytes=1 << 20, pictures=6)) as web:
        yield web


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> Settings:
    """Settings for one worker: short deadlines, a store of its own, loopback opened."""
    return Settings.model_validate(
        {
            "redis": redis_url,
            "dataset": "ds",
            "worker": {"store_dir": tmp_path / "store", "heartbeat_s": 0.2, "drain_s": 2, "concurrency": 16},
            "retry": {"max_attempts": 1},
            "fetch": {"deadline_s": 1.5, "max_bytes": "512KiB", "allow_networks": ["127.0.0.0/8"]},
        }
    )


def until(condition: Callable[[], Any], *, within_s: float = 20) -> Any:
    """Wait until `condition` gives something true, and return it."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)
    return value


def task(url: str, path: str | None = None, **more: object) -> bytes:
    """A queue item as the legacy feeder writes it."""
    return json.dumps(
        {"img_path": path or f"/ds/images/{abs(hash(url))}.jpg", "img_url": url} | more
    ).encode()


def errors_of(client: redis.Redis) -> list[dict[str, Any]]:
    """The error list, oldest first."""
    return [json.loads(item) for item in reversed(client.lrange(KEYS.error, 0, -1))]


class Hosts:
    """Those of `parked` are not to be asked; keeps who `answered`, and who `refused`, in what is in no result."""

    def __init__(self, parked: Collection[str] = ()) -> None:
        self.parked = parked
        self.answered: list[str] = []
        self.refused: list[str] = []

    def is_parked(self, host: str) -> bool:
        return host in self.parked

    def has_answered(self, host: str) -> None:
        self.answered.append(host)

    def has_refused(self, host: str, _answer: Failure) -> None:
        self.refused.append(host)


def fence(client: redis.Redis) -> None:
    """End the lease of the only session; its worker has another one when this returns."""
    (session,) = client.zrange(KEYS.lease, 0, -1)
    client.zadd(KEYS.lease, {session: 1})
    until(lambda: client.zrange(KEYS.lease, 0, -1) not in ([], [session]))


def changed(settings: Settings, section: str, **values: object) -> Settings:
    """The settings with some of one section changed."""
    merged = settings.model_dump() | {section: settings.model_dump()[section] | values}
    return Settings.model_validate(merged)


def stored_files(settings: Settings) -> list[Path]:
    """What is in the store, but for the ledger."""
    found = (p for p in settings.worker.store_dir.rglob("*") if p.is_file())
    return [p for p in found if "ledger" not in p.parts]


def ledger_of(settings: Settings) -> list[LedgerLine]:
    """Every line of the dataset's ledger, file by file; all of them must be whole."""
    files = sorted((settings.worker.store_dir / settings.dataset / "ledger").glob("*.jsonl"))
    return [
        msgspec.json.decode(line, type=LedgerLine)
        for path in files
        for line in path.read_bytes().splitlines()
    ]


@pytest.fixture
def no_room() -> Iterator[Callable[[bool], None]]:
    """Make every write to a file fail, as a full disk does: the kernel's limit on a file's size is 0."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda full: resource.setrlimit(resource.RLIMIT_FSIZE, (0 if full else soft, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


RUNNING: list[Running] = []


@pytest.fixture(autouse=True)
def no_worker_outlives_its_test() -> Iterator[None]:
    yield
    while RUNNING:
        RUNNING.pop().stop()


class Running:
    """A downloader in a thread, so that the test can stop it."""

    def __init__(self, settings: Settings, *, until_empty: bool = False) -> None:
        self.log = io.StringIO()
        self.downloader = Downloader(settings, log.configure(settings.log, self.log), until_empty=until_empty)
        self.outcome: object = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        RUNNING.append(self)

    def _run(self) -> None:
        try:
            self.outcome = self.downloader.run()
        except Exception as error:
            self.outcome = error

    def stop(self) -> object:
        self.downloader.request_stop()
        self.thread.join(30)
        assert not self.thread.is_alive()
        return self.outcome
