"""A stand-in for a process of the legacy script: what it does to the queue, the counts and the store.

It follows github.com/opendatalab/laion5b-downloader, `downloader.py`, as of 2023.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
import requests
from faults_support import KEYS, Fleet

from dlconsole.services.keys import LEGACY_DISK

THREADS = 8
STOP_THRESHOLD = 5000


class LegacyWorker:
    """Pops, fetches in a pool of threads that holds as many again, counts; ends at a sentinel.

    With `field` it looks at its host's disk before each task, and sleeps (for ever, here) where that is
    too full. `kill` ends it as a signal does: what it has in hand is gone.
    """

    def __init__(self, client: redis.Redis, store: Path, field: str = "") -> None:
        self.client = client
        self.store = store
        self.field = field
        self.stopped = threading.Event()
        self.broken_off = threading.Event()
        self.asleep = threading.Event()
        self.killed = threading.Event()
        self.taken: list[bytes] = []
        self.finished: list[bytes] = []
        self._room = threading.Semaphore(2 * THREADS)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    @property
    def in_hand(self) -> int:
        return len(self.taken) - len(self.finished)

    def kill(self) -> None:
        self.killed.set()
        self.broken_off.set()
        self.thread.join()

    def _run(self) -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            while not self.broken_off.is_set():
                if self.field and int(self.client.hget(LEGACY_DISK, self.field)) > STOP_THRESHOLD:
                    self.asleep.set()
                    self.broken_off.wait()
                    return
                raw = self.client.rpop(KEYS.task)
                if raw is None:
                    if self.stopped.wait(0.02):
                        return
                    continue
                if b"stop_this_task" in raw:
                    return
                self.taken.append(raw)
                self._room.acquire()
                pool.submit(self._one, raw)

    def _one(self, raw: bytes) -> None:
        try:
            if not self.killed.is_set():
                self._fetch(raw)
                self.finished.append(raw)
        finally:
            self._room.release()

    def _fetch(self, raw: bytes) -> None:
        try:
            task = json.loads(raw)
            hour = time.strftime("%Y%m%d%H") if self.field else ""
            answer = requests.get(task["img_url"], timeout=5)
            status = answer.status_code
            answer.raise_for_status()
            path = self.store / f"{hour}{task['img_path']}".lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(answer.content)
        except Exception as error:
            fields = task if isinstance(task := decoded(raw), dict) else {"raw": repr(raw)}
            status = getattr(getattr(error, "response", None), "status_code", 900)
            self.client.lpush(KEYS.error, json.dumps(fields | {"status": status, "error_msg": str(error)}))
            self.client.incr(KEYS.failed)
        else:
            self.client.incr(KEYS.stored)


StartLegacy = Callable[..., LegacyWorker]


@pytest.fixture
def start_legacy(client: redis.Redis, fleet: Fleet) -> Iterator[StartLegacy]:
    """Start a legacy worker, of a host's field of the disk hash; it ends with the test."""
    started: list[LegacyWorker] = []

    def start(field: str = "") -> LegacyWorker:
        started.append(LegacyWorker(client, fleet.store, field))
        return started[-1]

    yield start
    for worker in started:
        worker.broken_off.set()
        worker.thread.join()


def decoded(raw: bytes) -> object:
    try:
        return json.loads(raw)
    except ValueError:
        return None
