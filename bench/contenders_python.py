"""The HTTP libraries of Python, as scripts have them, each with the settings that suit it best."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from bench.contenders import BUFFER_BYTES, Work


def requests_pool(work: Work) -> None:
    """Threads with a `requests.Session` each."""
    import requests

    def opener() -> Callable[[str], bytes | None]:
        session = requests.Session()
        session.trust_env = False  # proxies and .netrc would be looked up for each request

        def get(url: str) -> bytes | None:
            answer = session.get(url, timeout=30)
            return answer.content if answer.status_code == 200 else None

        return get

    _on_threads(work, opener)


def urllib3_pool(work: Work) -> None:
    """Threads with a `urllib3.PoolManager` each: no lock is shared."""
    import urllib3

    def opener() -> Callable[[str], bytes | None]:
        pool = urllib3.PoolManager(timeout=30, retries=False)

        def get(url: str) -> bytes | None:
            answer = pool.request("GET", url)
            return answer.data if answer.status == 200 else None

        return get

    _on_threads(work, opener)


def _on_threads(work: Work, opener: Callable[[], Callable[[str], bytes | None]]) -> None:
    lock = threading.Lock()
    waiting = iter(work)

    def run() -> None:
        get = opener()
        while True:
            with lock:
                number, url = next(waiting, (-1, ""))
            if number < 0:
                return
            body = get(url)
            if body is not None:
                work.save(number, body)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(work.order.concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def aiohttp_loop(work: Work) -> None:
    """One session, no cookies, nothing unpacked, URLs taken as they are; as many readers as connections."""
    asyncio.run(_aiohttp(work))


def aiohttp_on_uvloop(work: Work) -> None:
    """The same on uvloop."""
    import uvloop

    uvloop.run(_aiohttp(work))


async def _aiohttp(work: Work) -> None:
    import aiohttp
    import yarl

    async def read(session: aiohttp.ClientSession) -> None:
        for number, url in work:
            async with session.get(yarl.URL(url, encoded=True), allow_redirects=False) as answer:
                body = await answer.read()
                if answer.status == 200:
                    work.save(number, body)

    n = work.order.concurrency
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=n),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        read_bufsize=BUFFER_BYTES,
        timeout=aiohttp.ClientTimeout(total=30),
    ) as session:
        await asyncio.gather(*(read(session) for _ in range(n)))


def httpx_loop(work: Work) -> None:
    """One `httpx.AsyncClient`, which most scripts of the legacy kind have."""
    asyncio.run(_httpx(work))


async def _httpx(work: Work) -> None:
    import httpx

    async def read(client: httpx.AsyncClient) -> None:
        for number, url in work:
            answer = await client.get(url)
            if answer.status_code == 200:
                work.save(number, answer.content)

    n = work.order.concurrency
    limits = httpx.Limits(max_connections=n, max_keepalive_connections=n)
    async with httpx.AsyncClient(limits=limits, timeout=30, trust_env=False) as client:
        await asyncio.gather(*(read(client) for _ in range(n)))
