"""What the worker is measured against: the least that fetches URLs into files, in a process of its own.

`python contenders.py` takes one order, a line of JSON, on standard input, and gives one result. The time
runs from the first request to the last file; starting Python and importing are not in it.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # not this folder: its queue.py would hide the standard one

import io
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

BUFFER_BYTES: Final = 256 * 1024
_FLAGS: Final = os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Order:
    """`engine` is a key of `ENGINES`; `urls` a file of URLs, of which the first `count` are fetched."""

    engine: str
    urls: str
    count: int
    store: str
    concurrency: int


@dataclass(frozen=True, slots=True)
class Result:
    """`seconds` on the clock and `cpu_s` of this process's time, for `images` files."""

    seconds: float
    cpu_s: float
    images: int


def save(folder_fd: int, name: str, data: bytes | memoryview) -> None:
    """One file, as plainly as it goes."""
    fd = os.open(name, _FLAGS, 0o666, dir_fd=folder_fd)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def curl_loop(urls: list[str], store: Path, concurrency: int) -> int:
    """libcurl's multi interface as its manual has it: perform, info_read, select. Nothing is checked but
    the status; how many files were written.
    """
    import pycurl

    multi = pycurl.CurlMulti()
    multi.setopt(pycurl.M_MAXCONNECTS, 2 * concurrency)
    handles = []
    for _ in range(concurrency):
        handle = pycurl.Curl()
        handle.setopt(pycurl.NOSIGNAL, 1)
        handle.setopt(pycurl.BUFFERSIZE, BUFFER_BYTES)
        handle.setopt(pycurl.PROXY, "")
        handles.append(handle)
    folder_fd = os.open(store, os.O_RDONLY | os.O_DIRECTORY)
    idle, waiting, written = list(handles), enumerate(urls), 0
    left = True
    while left or len(idle) < concurrency:
        while idle and left:
            number, url = next(waiting, (-1, ""))
            if number < 0:
                left = False
                break
            handle = idle.pop()
            handle.body, handle.number = io.BytesIO(), number
            handle.setopt(pycurl.WRITEFUNCTION, handle.body.write)
            handle.setopt(pycurl.URL, url)
            multi.add_handle(handle)
        multi.perform()
        more = 1
        while more:
            more, succeeded, failed = multi.info_read()
            for handle in succeeded:
                multi.remove_handle(handle)
                if handle.getinfo(pycurl.RESPONSE_CODE) == 200:
                    save(folder_fd, f"{handle.number}.jpg", handle.body.getbuffer())
                    written += 1
                idle.append(handle)
            for handle, _, _ in failed:
                multi.remove_handle(handle)
                idle.append(handle)
        if len(idle) < concurrency and not (idle and left):
            multi.select(1.0)
    os.close(folder_fd)
    return written


def requests_pool(urls: list[str], store: Path, concurrency: int) -> int:
    """Threads with a `requests.Session` each, as most scripts have it; how many files were written."""
    import requests

    folder_fd = os.open(store, os.O_RDONLY | os.O_DIRECTORY)
    waiting = iter(enumerate(urls))
    lock = threading.Lock()
    written = [0] * concurrency

    def work(thread: int) -> None:
        session = requests.Session()
        session.trust_env = False  # proxies and .netrc would be looked up for each request
        while True:
            with lock:
                number, url = next(waiting, (-1, ""))
            if number < 0:
                return
            answer = session.get(url, timeout=30)
            if answer.status_code == 200:
                save(folder_fd, f"{number}.jpg", answer.content)
                written[thread] += 1

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(folder_fd)
    return sum(written)


ENGINES: Final[dict[str, Callable[[list[str], Path, int], int]]] = {
    "libcurl": curl_loop,
    "requests": requests_pool,
}


def main() -> None:
    """See above. A parent that dies closes the pipe, but not in the middle of a run: runs are seconds."""
    order = Order(**json.loads(sys.stdin.readline()))
    urls = Path(order.urls).read_text(encoding="utf-8").splitlines()[: order.count]
    engine: Any = ENGINES[order.engine]
    __import__({"libcurl": "pycurl", "requests": "requests"}[order.engine])
    cpu_s, started = time.process_time(), time.perf_counter()
    images = engine(urls, Path(order.store), order.concurrency)
    result = Result(time.perf_counter() - started, time.process_time() - cpu_s, images)
    print(json.dumps(asdict(result)), flush=True)


if __name__ == "__main__":
    main()
