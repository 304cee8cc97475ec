"""The row of names: one dead domain in ten, whose name server never answers, beside none.

Every URL is of a domain that was never asked for before: what is remembered helps nobody, and each dead one
takes its five seconds. The web is the late one of the hosts' row, so that the dead are a tenth of a speed
that real webs allow. The time runs to the last picture; the dead that are left then are not waited for.

Beside it, what libcurl's own resolver makes of the same names. It asks the servers of /etc/resolv.conf, so it is
given another one, in a mount namespace of its own; that, and port 53, take root.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final

from bench.contenders import Order, Result
from bench.fetch_hosts import CONCURRENCY, LATENCY_S, ROUNDS
from bench.fetch_rig import LOOPBACK, Bench, Errand, compared, in_turns, system_resolver
from bench.rig import Ratio, RigError, paired, progress
from bench.rows import Row
from bench.webs import DEAD, late_web, name_server, picture_path
from dlconsole.settings import DnsSettings, FetchSettings

ROWS: Final = ("dns",)
TIMEOUT_S: Final = 5
_GOOD: Final = CONCURRENCY * 36
_GOOD_OF_LIBCURL: Final = CONCURRENCY * 2
"""Fewer, and one round of them: it takes a minute."""
_MAY_LOSE: Final = _GOOD // 100
_ONE_IN: Final = 10
_WHAT: Final = "good images/s: 1 dead domain in 10 / none"
_FLOOR: Final = 0.85


def measure(bench: Bench, _wanted: set[str]) -> Iterator[Row]:
    """The row. Raises RigError."""
    with late_web(bench.pictures, LATENCY_S, bench.cores.server) as web:
        with name_server(bench.cores.server) as resolver:
            runs = _of_worker(bench, web.port, resolver)
        values = paired([r.speed for r in runs["dead"]], [r.speed for r in runs["none"]])
        ratio = Ratio(_WHAT, values, _FLOOR)
        notes = [f"{_GOOD:,} good domains, {CONCURRENCY} fetches at once, each {LATENCY_S:g} s away"]
        lost = sum(_GOOD - result.images for results in runs.values() for result in results)
        if lost:
            notes.append(f"in all runs together {lost:,} good names were not found in time")
        try:
            others = _of_libcurl(bench, web.port)
        except RigError as error:
            notes.append(f"libcurl's own resolver: not measured: {error}")
        else:
            values = paired([r.speed for r in others["dead"]], [r.speed for r in others["none"]])
            notes.append(Ratio("the same of libcurl's own resolver", values).line())
            runs |= {f"libcurl, {who}": results for who, results in others.items()}
    yield compared(ROWS[0], ratio, runs, notes)


def _urls(port: int, good: int, *, dead: bool) -> list[str]:
    """`good` URLs, each of a domain of its own; `dead`: one more behind each nine."""
    urls = []
    for i in range(good):
        urls.append(f"http://g{i}.dns.test:{port}{picture_path(i)}")
        if dead and i % (_ONE_IN - 1) == 0:
            urls.append(f"http://{DEAD}{i}.dns.test:{port}{picture_path(i)}")
    return urls


def _of_worker(bench: Bench, port: int, resolver: str) -> dict[str, list[Result]]:
    contenders = {}
    for who in ("none", "dead"):
        urls = _urls(port, _GOOD, dead=who == "dead")
        errand = Errand(
            bench.url_file(f"dns-{who}", urls),
            len(urls),
            CONCURRENCY,
            FetchSettings(allow_networks=LOOPBACK),
            DnsSettings(resolvers=(resolver,), timeout_s=TIMEOUT_S),
            _MAY_LOSE,
        )
        contenders[who] = partial(bench.worker, errand, bench.memory)
    return in_turns(contenders, min(ROUNDS, bench.args.rounds))


def _of_libcurl(bench: Bench, port: int) -> dict[str, list[Result]]:
    with system_resolver(bench, TIMEOUT_S) as alone:
        progress("  libcurl's own resolver:")
        contenders = {}
        for who in ("none", "dead"):
            urls = _urls(port, _GOOD_OF_LIBCURL, dead=who == "dead")
            path = bench.url_file(f"dns-libcurl-{who}", urls)
            order = Order("epoll", str(path), len(urls), str(bench.memory), CONCURRENCY)
            contenders[who] = partial(bench.contender, order, prefix=alone)
        return in_turns(contenders, 1)
