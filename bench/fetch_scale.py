"""The row of two processes: what they do together, beside what one does.

With four cores or more, nginx and Redis have one each and the workers one each. With fewer, servers and workers
would fight over them, and the ratio would say how many cores there are. So each worker gets a quarter of a core,
by a quota of its control group, one on each core: they run at the same time, and what they share (Redis, the
kernel's locks, the store) they contend for, but the servers have all that they need besides. Whether that
is so is measured: a worker that did not use its quarter up waited for something, and then there is no figure.

The speed is taken from the middle of a run, where every process is at work: from when all have claimed
and a tenth is stored, until the queue is empty.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Final

import psutil

from bench.contenders import Result
from bench.fetch_rig import (
    LOOPBACK,
    RUN_S,
    Bench,
    Errand,
    Running,
    by_cpu,
    by_speed,
    compared,
    in_turns,
)
from bench.quota import quotas
from bench.rig import NotHere, Ratio, RigError, on_core, wait_for
from bench.rows import Row
from bench.webs import nginx, picture_path
from dlconsole.services.private_redis import PrivateRedis
from dlconsole.settings import FetchSettings

ROWS: Final = ("processes",)
_WHAT: Final = "two processes / one"
_FLOOR: Final = 1.8
_SHARE: Final = 0.25
_LEAST_USED: Final = 0.9
"""Of its share a worker must use this much, else the servers are the limit."""
_CORES_FOR_ALL: Final = 4


class Scale:
    """Where servers and workers run, and how much of a core a worker may use."""

    def __init__(self, bench: Bench) -> None:
        cores = bench.usable
        if len(cores) < 2:
            raise NotHere("two processes need two cores")
        self.enough = len(cores) >= _CORES_FOR_ALL
        self.share = 1.0 if self.enough else _SHARE
        self.workers = cores[-2:]
        self.web, self.redis = (cores[:1], cores[1:2]) if self.enough else (cores, cores)
        self.note = (
            "every server and every worker has a core"
            if self.enough
            else f"each worker may use {_SHARE:g} of a core: with {len(cores)} cores the servers need the rest"
        )


def measure(bench: Bench, _wanted: set[str]) -> Iterator[Row]:
    """The row. Raises RigError."""
    scale = Scale(bench)
    count, n = bench.args.tasks, bench.args.concurrency
    with ExitStack() as stack:
        port = stack.enter_context(nginx(bench.pictures, *scale.web))
        with on_core(*scale.redis):
            private = stack.enter_context(PrivateRedis())
        urls = bench.url_file("scale", [f"http://127.0.0.1:{port}{picture_path(i)}" for i in range(count)])
        fetch = FetchSettings(allow_networks=LOOPBACK, per_host=n)
        contenders = {
            who: partial(
                _run, bench, scale, Errand(urls, count * len(cores) // 2, n, fetch), cores, private.url
            )
            for who, cores in (("one", scale.workers[-1:]), ("two", scale.workers))
        }
        runs = in_turns(contenders, bench.args.rounds)
    ratio = Ratio(_WHAT, by_speed(runs, "two", "one"), _FLOOR)
    cpu = Ratio("CPU an image, two / one", by_cpu(runs, "two", "one")).line()
    yield compared(ROWS[0], ratio, runs, [scale.note, cpu])


def _run(bench: Bench, scale: Scale, errand: Errand, cores: tuple[int, ...], redis_url: str) -> Result:
    with bench.running(errand, bench.memory, *cores, redis_url=redis_url) as running:
        wait_for(
            lambda: _all_have_claimed(running, len(cores)), within_s=30, what=f"{len(cores)} first claims"
        )
        running.let_memory_go()
        with ExitStack() as stack:
            if not scale.enough:
                stack.enter_context(quotas(running.group.pids, scale.share))
            result = _middle(running, errand.count)
            bench.finish(running, errand)
        used = result.cpu_s / result.seconds / len(cores) / scale.share
        if used < _LEAST_USED:
            raise RigError(
                f"{len(cores)} workers used {used:.0%} of the CPU time that they may have: something else is the limit"
            )
        return result


def _all_have_claimed(running: Running, processes: int) -> bool:
    sessions = running.client.smembers(running.keys.sessions)
    held = [running.client.hlen(running.keys.in_flight(session.decode())) for session in sessions]
    if running.ended:
        raise running.broken("the workers ended before all had claimed")
    return len(held) == processes and all(held)


def _middle(running: Running, count: int) -> Result:
    """The speed from a tenth of the tasks until the queue is empty, as Redis shows it."""
    processes = [psutil.Process(pid) for pid in running.group.pids]

    def state() -> tuple[float, float, int]:
        return time.perf_counter(), sum(sum(p.cpu_times()[:2]) for p in processes), running.counts[0]

    settled = running.counts[0] + count // 10
    wait_for(lambda: running.counts[0] >= settled, within_s=RUN_S, what="a tenth of the tasks")
    began, cpu_before_s, before = state()
    wait_for(lambda: not running.client.llen(running.keys.task), within_s=RUN_S, what="the rest of the tasks")
    ended, cpu_s, stored = state()
    return Result(ended - began, cpu_s - cpu_before_s, stored - before)
