"""The row of many hosts: 5,000 of them, each 200 ms away, 512 fetches at once in one process.

At most concurrency / latency fetches a second can end; a bare libcurl loop shows what is left of that on this
machine, and that the web is not the limit. The worker must reach a share of the lesser of the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from bench.contenders import Order
from bench.fetch_rig import LOOPBACK, Bench, Errand, compared, in_turns
from bench.rig import Ratio
from bench.rows import Row
from bench.webs import late_web, picture_path
from dlconsole.settings import FetchSettings

ROWS: Final = ("hosts",)
HOSTS: Final = 5000
LATENCY_S: Final = 0.2
CONCURRENCY: Final = 512
ROUNDS: Final = 3
TURNS: Final = 40
"""Each of the fetches at once is followed by so many: about eight seconds."""
_WHAT: Final = "worker / what latency or the bare loop allows"
_FLOOR: Final = 0.85


def measure(bench: Bench, _wanted: set[str]) -> Iterator[Row]:
    """The row. Raises RigError."""
    count = CONCURRENCY * TURNS
    with late_web(bench.pictures, LATENCY_S, bench.cores.server) as web:
        urls = bench.url_file(
            "hosts", [f"http://{_host(i)}:{web.port}{picture_path(i)}" for i in range(count)]
        )
        errand = Errand(urls, count, CONCURRENCY, FetchSettings(allow_networks=LOOPBACK))
        order = Order("epoll", str(urls), count, str(bench.memory), CONCURRENCY)
        busy_s = web.cpu_s()
        runs = in_turns(
            {
                "worker": lambda: bench.worker(errand, bench.memory),
                "libcurl": lambda: bench.contender(order),
            },
            min(ROUNDS, bench.args.rounds),
        )
        busy_s = web.cpu_s() - busy_s
    allowed = CONCURRENCY / LATENCY_S
    values = tuple(
        ours.speed / min(allowed, theirs.speed)
        for ours, theirs in zip(runs["worker"], runs["libcurl"], strict=True)
    )
    total_s = sum(result.seconds for results in runs.values() for result in results)
    notes = [
        f"latency allows {allowed:,.0f} images/s; {HOSTS:,} hosts, {count // HOSTS} or {count // HOSTS + 1} images of each",
        f"the web used {busy_s / total_s:.0%} of its core",
    ]
    yield compared(ROWS[0], Ratio(_WHAT, values, _FLOOR), runs, notes)


def _host(number: int) -> str:
    """An address of loopback for each host."""
    host = number % HOSTS
    return f"127.{1 + host // 250}.{host % 250}.1"
