"""What the worker is measured against: the least that fetches URLs into files, in a process of its own.

`python contenders.py` takes one order, a line of JSON, on standard input, and gives one result. The time
runs from the first request to the last file; starting Python and importing are not in it.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # not this folder: its queue.py would hide the standard one

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Final

BUFFER_BYTES: Final = 256 * 1024
_FLAGS: Final = os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC

ENGINES: Final = {
    "perform": ("bench.contenders_curl", "perform_loop", "pycurl"),
    "epoll": ("bench.contenders_curl", "epoll_loop", "pycurl"),
    "queue": ("bench.contenders_curl", "queue_loop", "pycurl redis"),
    "requests": ("bench.contenders_python", "requests_pool", "requests"),
    "urllib3": ("bench.contenders_python", "urllib3_pool", "urllib3"),
    "aiohttp": ("bench.contenders_python", "aiohttp_loop", "aiohttp"),
    "aiohttp_uvloop": ("bench.contenders_python", "aiohttp_on_uvloop", "aiohttp uvloop"),
    "httpx": ("bench.contenders_python", "httpx_loop", "httpx"),
}
"""Name → where it is, and what it imports."""


@dataclass(frozen=True, slots=True)
class Order:
    """`engine` is a key of `ENGINES`; `urls` a file of URLs, of which the first `count` are fetched.

    The curl loops alone know `connect_to`, addresses (`ADDRESS:PORT`) that connections go to by turns, whatever
    the host's name, and `ca_file`, whom to trust for https. `redis` has the queue of the one that takes its
    URLs from there.
    """

    engine: str
    urls: str
    count: int
    store: str
    concurrency: int
    connect_to: tuple[str, ...] = ()
    ca_file: str = ""
    redis: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """`seconds` on the clock and `cpu_s` of the process's time, for `images` files."""

    seconds: float
    cpu_s: float
    images: int

    @property
    def speed(self) -> float:
        """Images a second."""
        return self.images / self.seconds

    @property
    def cpu_us(self) -> float:
        """CPU time an image, in µs."""
        return 1e6 * self.cpu_s / self.images


class Work:
    """The URLs that wait, and the folder that files go to, as plainly as it goes. For threads as well."""

    def __init__(self, order: Order, urls: list[str]) -> None:
        self.order = order
        self._waiting = iter(enumerate(urls))
        self._folder_fd = os.open(order.store, os.O_RDONLY | os.O_DIRECTORY)
        self._saved_at: list[float] = []

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """Number and URL; several may take from it by turns."""
        return self._waiting

    def save(self, number: int, data: bytes | memoryview) -> None:
        """One picture."""
        self._write(f"{number}.jpg", data)
        self._saved_at.append(time.perf_counter())

    def _write(self, name: str, data: bytes | memoryview) -> None:
        fd = os.open(name, _FLAGS, 0o666, dir_fd=self._folder_fd)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)

    def result(self, started: float, cpu_s: float) -> Result:
        """Until the last file, so that what never comes counts only as far as it holds up the rest."""
        if not self._saved_at:
            return Result(time.perf_counter() - started, cpu_s, 0)
        return Result(max(self._saved_at) - started, cpu_s, len(self._saved_at))


class QueueWork(Work):
    """The least that is a worker: tasks are taken from a list in Redis into a hash and out of it again when
    they are done, and a file appears by renaming.
    """

    BATCH: Final = 200

    def __init__(self, order: Order, urls: list[str]) -> None:
        import redis

        super().__init__(order, urls)
        self._client = redis.Redis.from_url(order.redis)
        self._done: list[int] = []
        self._waiting = self._claimed()

    def _claimed(self) -> Iterator[tuple[int, str]]:
        number = 0
        while items := self._client.rpop("least_task", self.BATCH):
            self._client.hset("least_held", mapping={number + i: item for i, item in enumerate(items)})
            for item in items:
                yield number, json.loads(item)["img_url"]
                number += 1

    def save(self, number: int, data: bytes | memoryview) -> None:
        self._write(f"{number}.part", data)
        os.rename(f"{number}.part", f"{number}.jpg", src_dir_fd=self._folder_fd, dst_dir_fd=self._folder_fd)
        self._done.append(number)
        if len(self._done) == self.BATCH:
            self.ack()
        self._saved_at.append(time.perf_counter())

    def ack(self) -> None:
        """Count what is done."""
        if self._done:
            self._client.hdel("least_held", *self._done)
            self._client.incrby("least_stored", len(self._done))
            self._done.clear()


def missing(engine: str) -> str:
    """Which module an engine lacks here; empty: none."""
    for module in ENGINES[engine][2].split():
        try:
            import_module(module)
        except ImportError:
            return module
    return ""


def main() -> None:
    """See above. A parent that dies closes the pipe, but not in the middle of a run: runs are seconds."""
    order = Order(**json.loads(sys.stdin.readline()))
    urls = Path(order.urls).read_text(encoding="utf-8").splitlines()[: order.count]
    place, function, modules = ENGINES[order.engine]
    for module in modules.split():
        import_module(module)
    engine = getattr(import_module(place), function)
    work = QueueWork(order, urls) if order.redis else Work(order, urls)
    cpu_s, started = time.process_time(), time.perf_counter()
    _open = engine(work)
    result = work.result(started, time.process_time() - cpu_s)
    print(json.dumps(asdict(result)), flush=True)
    os._exit(0)  # what is still open needs no goodbye


if __name__ == "__main__":
    main()
