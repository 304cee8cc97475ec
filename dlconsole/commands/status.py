"""One picture of the fleet: counts, speeds, hosts, sessions, Redis, pause, warnings.

examples:
  dlconsole status --dataset laion5b             once, as a table
  dlconsole status --json | jq .counts.queued    for scripts
  dlconsole status --watch                       renewed until Ctrl-C
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from dlconsole.commands.common import load_settings
from dlconsole.units import format_bytes, format_count, format_duration, format_short

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from dlconsole.model import Counts, FleetSnapshot
    from dlconsole.settings import Settings

_EPILOG: Final = """\
exit status: 0 when every task that was fed is accounted for, or that cannot be checked because only
legacy feeders fed; 1 when tasks are missing or there are too many (in a fleet with legacy workers or
feeders that is no fault); 3 when Redis cannot be used.
"""
_MOST_ROWS: Final = 50
_PERCENTS: Final = (50, 95, 99)
_UNKNOWN: Final = "-"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.epilog = _EPILOG
    parser.add_argument("--json", action="store_true", help="one JSON object; with --watch one a line")
    parser.add_argument("--watch", action="store_true", help="renew until Ctrl-C")
    parser.add_argument("--refresh", dest="console.refresh_s", metavar="TIME", help="between pictures (2s)")


def run(args: argparse.Namespace) -> int:
    """Print it; the exit status says whether the last picture adds up."""
    from dlconsole.services import embedded
    from dlconsole.services.fleet import read_now

    settings = embedded.resolve(load_settings(args).settings)
    if not args.watch:
        snapshot = read_now(settings)
        _print(snapshot, as_json=args.json)
        return _exit_status(snapshot.counts)
    seen: list[Counts] = []
    try:
        asyncio.run(_watch(settings, seen, as_json=args.json))
    except KeyboardInterrupt:
        pass  # how watching ends
    return _exit_status(seen[-1]) if seen else 0


async def _watch(settings: Settings, seen: list[Counts], *, as_json: bool) -> None:
    """A picture each `refresh_s`, over the last one on a terminal; waits while Redis is away."""
    from rich.console import Console
    from rich.live import Live

    from dlconsole.errors import RedisUnavailable
    from dlconsole.services.fleet import FleetReader

    reader = FleetReader(settings)
    live = Live(console=Console(), auto_refresh=False) if sys.stdout.isatty() and not as_json else None
    try:
        if live:
            live.start()
        while True:
            try:
                snapshot = await reader.read_snapshot()
            except RedisUnavailable as error:
                if not seen:
                    raise
                print(f"dlconsole: {error}", file=sys.stderr, flush=True)
            else:
                seen[:] = [snapshot.counts]
                if live:
                    live.update(_picture(snapshot), refresh=True)
                else:
                    _print(snapshot, as_json=as_json)
            await asyncio.sleep(settings.console.refresh_s)
    finally:
        if live:
            live.stop()
        await reader.close()


def _exit_status(counts: Counts) -> int:
    return 1 if counts.missing else 0


# -- for machines ----------------------------------------------------------------------------------


def _print(snapshot: FleetSnapshot, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_to_json(snapshot)), flush=True)
        return
    from rich.console import Console

    # Where no terminal sets a width, names stay whole.
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(_picture(snapshot))


def _to_json(snapshot: FleetSnapshot) -> dict[str, Any]:
    """The snapshot without its history; `invariant.holds` is null where it cannot be checked."""
    import msgspec

    from dlconsole.services.checks import findings

    counts = snapshot.counts
    return {
        "dataset": snapshot.dataset,
        "at_ms": snapshot.at_ms,
        "counts": asdict(counts) | {"outstanding": counts.outstanding, "done": counts.done},
        "invariant": {
            "holds": None if counts.missing is None else counts.missing == 0,
            "missing": counts.missing,
            "says": _invariant(counts),
        },
        "rates": asdict(snapshot.rates),
        "times": _times(snapshot),
        "hosts": [msgspec.to_builtins(host) for host in snapshot.hosts],
        "sessions": [
            {"id": s.id, "alive": s.alive, "lease_ms": s.lease_ms} | msgspec.to_builtins(s.stats)
            for s in snapshot.sessions
        ],
        "redis": asdict(snapshot.redis),
        "pause": asdict(snapshot.pause) if snapshot.pause else None,
        "warnings": [asdict(finding) for finding in findings(snapshot.redis)],
        "unreadable": snapshot.unreadable,
    }


def _times(snapshot: FleetSnapshot) -> dict[str, Any]:
    """What fetching takes, in seconds, over all sessions; null where nothing was sampled."""
    from dlconsole.services.fetch_times import PARTS, fetch_times

    times = fetch_times(session.stats for session in snapshot.sessions)
    return {
        "parts": {
            part: {f"p{percent}_s": times.percentile_s(part, percent) for percent in _PERCENTS}
            for part in PARTS
        },
        "reuse": times.reuse,
        "lookups": dict(times.lookups),
        "lookup_failures": times.lookup_failures,
    }


def _invariant(counts: Counts) -> str:
    """Whether fed = queued + in flight + delayed + stored + failed, in words."""
    missing = counts.missing
    if missing is None:
        return "cannot be checked: no feeder counted what it fed (legacy feeders do not)"
    if missing == 0:
        return "every task that was fed is accounted for"
    if missing > 0:
        return f"{format_count(missing)} that were fed are nowhere (legacy workers lose some when they die)"
    return f"{format_count(-missing)} more than were fed (legacy feeders do not count; stop sentinels do)"


# -- for people ------------------------------------------------------------------------------------


def _picture(snapshot: FleetSnapshot) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(snapshot):
        facts.add_row(name, Text(value))
    parts: list[RenderableType] = [facts]
    if snapshot.hosts:
        parts += ["", _table(_HOST_HEAD, _host_rows(snapshot), len(snapshot.hosts))]
    if snapshot.sessions:
        parts += ["", _table(_SESSION_HEAD, _session_rows(snapshot), len(snapshot.sessions))]
    return Group(*parts)


def _facts(snapshot: FleetSnapshot) -> Iterator[tuple[str, str]]:
    from dlconsole.services.checks import findings

    counts, rates, redis = snapshot.counts, snapshot.rates, snapshot.redis
    yield "dataset", snapshot.dataset
    for name in ("queued", "in_flight", "delayed", "stored", "failed", "fed", "error_list"):
        yield name.replace("_", " "), format_count(getattr(counts, name))
    yield "accounted", _invariant(counts)
    ratio = f", {rates.success_ratio:.1%} stored" if rates.success_ratio is not None else ""
    yield "speed", f"{_short(rates.stored_per_s)} stored/s, {_short(rates.failed_per_s)} failed/s{ratio}"
    yield "bytes", f"{format_bytes(rates.bytes_per_s)}/s" if rates.bytes_per_s is not None else _UNKNOWN
    yield "finished in", format_duration(rates.finish_s) if rates.finish_s is not None else _UNKNOWN
    yield from _time_facts(snapshot)
    alive = sum(session.alive for session in snapshot.sessions)
    yield "sessions", f"{alive} alive, {len(snapshot.sessions) - alive} with a lease that has run out"
    limit = f" of {format_bytes(redis.max_bytes)}" if redis.max_bytes else ""
    yield (
        "redis",
        f"{redis.version}, {redis.role}, {format_bytes(redis.used_bytes)}{limit}, {redis.clients} clients",
    )
    if pause := snapshot.pause:
        ago = format_duration((snapshot.at_ms - pause.at_ms) / 1000)
        yield "PAUSED", f"{ago} ago by {pause.by}" + (f": {pause.why}" if pause.why else "")
    waiting = [host for host in snapshot.hosts if host.waits]
    for host in waiting[:_MOST_ROWS]:
        yield "WAITS", f"{host.name} for its store: {host.waits}"
    if len(waiting) > _MOST_ROWS:
        yield "WAITS", f"and {len(waiting) - _MOST_ROWS} more hosts: see --json"
    for finding in findings(redis):
        yield "warning", f"{finding.said}: {finding.todo}"
    if snapshot.unreadable:
        yield "warning", f"{snapshot.unreadable} records of sessions or hosts are not dlconsole's"


def _time_facts(snapshot: FleetSnapshot) -> Iterator[tuple[str, str]]:
    """Only where there is something to tell."""
    from dlconsole.model import LookupResult
    from dlconsole.services.fetch_times import PARTS, fetch_times

    times = fetch_times(session.stats for session in snapshot.sessions)
    shown = [
        f"{part.replace('_', ' ')} "
        + "/".join(_short(1000 * (times.percentile_s(part, percent) or 0.0)) for percent in _PERCENTS)
        for part in PARTS
        if part in times.parts
    ]
    if shown:
        percents = "/".join(f"p{percent}" for percent in _PERCENTS)
        yield "times", f"{', '.join(shown)} ms ({percents})"
    if times.reuse is not None:
        yield "connections", f"{times.reuse:.1%} of requests on one that was open"
    if times.lookup_failures is not None:
        failed = [
            f"{format_count(count)} {result.replace('_', ' ')}"
            for result, count in times.lookups.items()
            if count and result != LookupResult.FOUND
        ]
        said = f"{format_count(times.lookups.total())} looked up, {times.lookup_failures:.1%} failed"
        yield "names", said + (f": {', '.join(failed)}" if failed else "")


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]], count: int) -> Table:
    from itertools import islice

    from rich.table import Table
    from rich.text import Text

    left_out = f"and {count - _MOST_ROWS} more: see --json" if count > _MOST_ROWS else None
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), caption=left_out, caption_justify="left")
    for number, name in enumerate(head):
        table.add_column(name, justify="left" if number == 0 else "right", no_wrap=True)
    for row in islice(rows, _MOST_ROWS):
        table.add_row(*map(Text, row))
    return table


_HOST_HEAD: Final = ("host", "address", "disk used", "of", "sessions", "stored/s", "bytes/s", "seen")
_SESSION_HEAD: Final = ("session", "state", "in flight", "stored", "failed", "stored/s", "memory", "lease")


def _host_rows(snapshot: FleetSnapshot) -> Iterator[tuple[str, ...]]:
    for host in snapshot.hosts:
        seen_s = (snapshot.at_ms - host.seen_ms) / 1000 if host.seen_ms is not None else None
        yield (
            host.name,
            host.ip,
            format_bytes(host.disk_used_bytes) if host.disk_used_bytes is not None else _UNKNOWN,
            format_bytes(host.disk_total_bytes) if host.disk_total_bytes else _UNKNOWN,
            str(host.sessions),
            format_short(host.stored_per_s),
            format_bytes(host.bytes_per_s),
            f"{format_duration(seen_s)} ago" if seen_s is not None else _UNKNOWN,
        )


def _session_rows(snapshot: FleetSnapshot) -> Iterator[tuple[str, ...]]:
    for session in snapshot.sessions:
        stats = session.stats
        yield (
            session.id,
            stats.state if session.alive else "dead",
            format_count(stats.in_flight),
            format_count(stats.stored),
            format_count(stats.failed),
            format_short(stats.stored_per_s),
            format_bytes(stats.rss_bytes),
            format_duration(session.lease_ms / 1000) if session.alive else "run out",
        )


def _short(value: float | None) -> str:
    return format_short(value) if value is not None else _UNKNOWN
