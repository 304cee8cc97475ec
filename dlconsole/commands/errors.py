"""Failed tasks: count them, export them to files, put them back into the queue.

summary  counts the errors by kind, status or host
export   moves them into files, one JSON object a line, each error once whatever is killed when
requeue  makes tasks of them again, from the list or from exported files
adopt    puts back what the drainer of a folder that is gone for good had taken
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from dlconsole.commands.common import load_settings
from dlconsole.commands.stopping import stop_event
from dlconsole.errors import RedisUnavailable, UsageError
from dlconsole.units import format_count, format_duration

if TYPE_CHECKING:
    from dlconsole.services.error_items import Filter
    from dlconsole.services.error_requeue import Order, RequeueReport
    from dlconsole.services.error_summary import By, Summary
    from dlconsole.services.spool import Holder
    from dlconsole.settings import Settings

_DRAW_EVERY_S: Final = 0.1
_SHOWN: Final = 20
_INTERRUPTED: Final = 130

_EPILOG: Final = """\
examples:
  dlconsole errors summary --by host
  dlconsole errors export --dir /data/error_task --follow
  dlconsole errors requeue --kind dns --kind timeout --dry-run
  dlconsole errors requeue --file error_task/*.txt --status 503 --yes

Kinds are the failure kinds, and for errors of legacy workers, by their status: no_answer (900), bad_body
(below 400), unknown (none), not_json.
"""
_ONLY: Final = {
    "follow": ("export",),
    "by": ("summary",),
    "kind": ("requeue",),
    "status": ("requeue",),
    "host": ("requeue",),
    "file": ("summary", "requeue"),
    "max": ("export", "requeue"),
    "dry_run": ("requeue",),
    "yes": ("requeue", "adopt"),
    "drainer": ("adopt",),
}
"""Which actions an argument goes with."""

R = TypeVar("R")
Draw = Callable[[int, int, str], None]
"""Draws progress: done, of how many (0: not known), and words."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.epilog = _EPILOG
    parser.add_argument("action", choices=("summary", "export", "requeue", "adopt"), help="what to do")
    parser.add_argument("drainer", nargs="?", metavar="DRAINER", help="adopt: which, as `summary` names it")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument("--max", type=int, metavar="N", help="export, requeue: at most so many errors")
    parser.add_argument(
        "--file", nargs="+", type=Path, metavar="FILE", help="summary, requeue: exported files, not the list"
    )
    parser.add_argument("--yes", action="store_true", help="requeue, adopt: do not ask")
    summary = parser.add_argument_group("summary")
    summary.add_argument("--by", choices=("kind", "status", "host"), help="what to count by (kind)")
    summary.add_argument("--sample", dest="errors.sample", metavar="N", help="read at most N (100000)")
    export = parser.add_argument_group("export")
    export.add_argument("--dir", dest="errors.dir", metavar="DIR", help="folder of the files (./error_task)")
    export.add_argument("--follow", action="store_true", help="wait for more errors until stopped")
    requeue = parser.add_argument_group(
        "requeue: all that is given must hold; each may be given several times"
    )
    requeue.add_argument("--kind", action="append", metavar="KIND", help="a failure kind, such as timeout")
    requeue.add_argument("--status", action="append", type=int, metavar="N", help="a status, such as 503")
    requeue.add_argument("--host", action="append", metavar="NAME", help="a host, with its subdomains")
    requeue.add_argument("--dry-run", action="store_true", help="count only; change nothing")


def run(args: argparse.Namespace) -> int:
    """Do it; 0 when it was done, 130 when it was stopped."""
    from dlconsole.services import embedded

    for name, goes_with in _ONLY.items():
        if getattr(args, name) and args.action not in goes_with:
            words = "an argument" if name == "drainer" else "--" + name.replace("_", "-")
            raise UsageError(f"`errors {args.action}` takes no {words}")
    if args.max is not None and args.max < 1:
        raise UsageError("--max takes a number from 1")
    settings = embedded.resolve(load_settings(args).settings)
    act = {"summary": _summary, "export": _export, "requeue": _requeue, "adopt": _adopt}[args.action]
    return act(args, settings)


def _say(text: str) -> None:
    print(f"dlconsole: {text}", file=sys.stderr)


# -- summary --------------------------------------------------------------------------------------


def _summary(args: argparse.Namespace, settings: Settings) -> int:
    from dlconsole.services import error_summary

    by = cast("By", args.by or "kind")
    if args.file:
        found = error_summary.of_files(settings, args.file, by)
    else:
        found = error_summary.of_list(settings, by)
    if args.json:
        print(json.dumps(_summary_record(found, settings)))
    else:
        _print_summary(found)
    return 0


def _summary_record(found: Summary, settings: Settings) -> dict[str, Any]:
    return {
        "dataset": settings.dataset,
        "by": found.by,
        "total": found.total,
        "read": found.read,
        "sample": found.is_sample,
        "counts": dict(found.counts.most_common(1000)),
        "groups": len(found.counts),
        "held": [asdict(holder) for holder in found.held],
        "unfinished": found.unfinished,
    }


def _print_summary(found: Summary) -> None:
    total = "more" if found.total is None else format_count(found.total)
    if found.is_sample:
        print(f"a sample: {format_count(found.read)} of {total} errors")
    else:
        print(f"{total} errors")
    shown = found.counts.most_common(_SHOWN)
    width = max((len(name) for name, _ in shown), default=0)
    for name, count in shown:
        print(f"  {name:<{width}}  {format_count(count):>12}  {100 * count / found.read:5.1f} %")
    rest = len(found.counts) - len(shown)
    if rest > 0:
        others = found.read - sum(count for _, count in shown)
        print(f"  {f'{format_count(rest)} others':<{width}}  {format_count(others):>12}")
    for holder in found.held:
        print(_held_words(holder))
    _print_unfinished(found.unfinished)


def _print_unfinished(paths: Sequence[str]) -> None:
    for path in paths:
        print(f"{path}: the last line is unfinished (it has no newline); left out")


def _held_words(holder: Holder) -> str:
    place = f" into {holder.place}" if holder.place else ""
    ago = format_duration(holder.silent_ms / 1000)
    count = format_count(holder.held)
    return f"{count} more are taken by {holder.id} ({holder.kind} on {holder.host}{place}), seen {ago} ago"


# -- export ---------------------------------------------------------------------------------------


def _export(args: argparse.Namespace, settings: Settings) -> int:
    from dlconsole.services import error_export
    from dlconsole.services.error_export import ExportReport, Watcher

    last = ExportReport()

    with stop_event() as stop, _progress("exporting", quiet=args.json) as draw:

        def progress(report: ExportReport) -> None:
            nonlocal last
            last = report
            draw(report.exported, 0 if args.follow else report.total, report.file)

        def work() -> ExportReport:
            watcher = Watcher(stop, _say, progress)
            return error_export.export(settings, watcher, follow=args.follow, limit=args.max)

        report = _until_stopped(stop, work, lambda: last)
    if args.json:
        print(json.dumps({"dataset": settings.dataset, "dir": str(settings.errors.dir)} | asdict(report)))
    else:
        _print_export(report, settings)
    return _INTERRUPTED if report.stopped else 0


def _print_export(report: Any, settings: Settings) -> None:
    extra = [
        f"{format_count(number)} {words}"
        for number, words in (
            (report.finished, "of an earlier run finished"),
            (report.sentinels, "stop sentinels dropped"),
            (report.uncertain, "may come once more, because Redis had lost that they were taken"),
        )
        if number
    ]
    print(
        f"exported {format_count(report.exported)} errors of {settings.dataset!r} to {settings.errors.dir}"
        + "".join(f", {words}" for words in extra)
        + (" (stopped)" if report.stopped else "")
    )


def _until_stopped(stop: threading.Event, work: Callable[[], R], last: Callable[[], R]) -> R:
    """The work's report; where it was stopped while it waited for Redis, the last one."""
    try:
        return work()
    except RedisUnavailable:
        if not stop.is_set():
            raise
        report: Any = last()
        report.stopped = True
        return last()


# -- requeue --------------------------------------------------------------------------------------


def _requeue(args: argparse.Namespace, settings: Settings) -> int:
    from dlconsole.services import error_requeue
    from dlconsole.services.error_items import KINDS, Filter
    from dlconsole.services.permission import require_writable

    unknown = sorted(set(args.kind or ()) - set(KINDS))
    if unknown:
        raise UsageError(f"no such kind: {', '.join(unknown)} (kinds: {', '.join(KINDS)})")
    chosen = Filter(args.kind or (), args.status or (), [host.lower() for host in args.host or ()])
    if not args.dry_run:
        require_writable(settings, "requeueing errors")
        if not args.yes and not sys.stdin.isatty():
            raise UsageError("requeueing asks first: add --yes, or --dry-run to count only")
    report = None
    if not args.yes:
        report = _look_through(error_requeue.count, "looking", chosen, args, settings)
    if report is None or not (args.dry_run or report.stopped):
        if report is not None and report.requeued and not _confirmed(report, settings):
            print("nothing was changed")
            return 1
        report = _look_through(error_requeue.requeue, "requeueing", chosen, args, settings)
    if args.json:
        print(json.dumps({"dataset": settings.dataset, "dry_run": args.dry_run} | asdict(report)))
    else:
        _print_requeue(report, settings, dry_run=args.dry_run)
    return _INTERRUPTED if report.stopped else 0


def _look_through(
    work: Callable[[Settings, Order, Sequence[Path]], RequeueReport],
    what: str,
    chosen: Filter,
    args: argparse.Namespace,
    settings: Settings,
) -> RequeueReport:
    """Count or requeue, with progress, until it is done or stopped."""
    from dlconsole.services.error_requeue import Order, RequeueReport

    last = RequeueReport()
    with stop_event() as stop, _progress(what, quiet=args.json) as draw:

        def progress(report: RequeueReport) -> None:
            nonlocal last
            last = report
            draw(report.read, report.total, f"{format_count(report.requeued)} chosen")

        order = Order(chosen, stop, _say, progress, args.max)
        return _until_stopped(stop, lambda: work(settings, order, args.file or ()), lambda: last)


def _confirmed(report: RequeueReport, settings: Settings) -> bool:
    count, read = format_count(report.requeued), format_count(report.read)
    return _ask(f"Put {count} of {read} errors back into the queue of {settings.dataset!r}?")


def _ask(question: str) -> bool:
    try:
        return input(f"{question} [y/N] ").strip().lower() in {"y", "yes"}
    except EOFError:
        print()
        return False


def _print_requeue(report: RequeueReport, settings: Settings, *, dry_run: bool) -> None:
    verb = "would requeue" if dry_run else "requeued"
    extra = [
        f"{format_count(number)} {words}"
        for number, words in (
            (report.already, "were requeued before"),
            (report.not_tasks, "are no tasks and stay"),
        )
        if number
    ]
    counts = f"{format_count(report.requeued)} of {format_count(report.read)} errors"
    print(
        f"{verb} {counts} of {settings.dataset!r}"
        + "".join(f", {words}" for words in extra)
        + (" (stopped; the same command goes on)" if report.stopped else "")
    )
    _print_unfinished(report.unfinished)


# -- adopt ----------------------------------------------------------------------------------------


def _adopt(args: argparse.Namespace, settings: Settings) -> int:
    from dlconsole.services import spool
    from dlconsole.services.connection import connect
    from dlconsole.services.keys import Keys
    from dlconsole.services.permission import require_writable

    require_writable(settings, "adopting errors")
    keys, url = Keys(settings.dataset), settings.redis
    with connect(url, name="dlconsole-errors") as client:
        known = {holder.id: holder for holder in spool.holders(client, keys, url)}
        holder = known.get(args.drainer or "")
        if holder is None:
            raise UsageError(f"no such drainer; known are: {', '.join(known) or 'none'}")
        _say(_held_words(holder))
        if not args.yes:
            if not sys.stdin.isatty():
                raise UsageError("adopting asks first: add --yes")
            _say("an export there finishes it exactly; adopted, what it had written already comes twice")
            if not _ask("Put them back into the error list?"):
                print("nothing was changed")
                return 1
        count = spool.give_back(client, keys, url, holder.id)
    if count is None:
        raise UsageError(f"{holder.id} was seen less than {spool.SILENT_MS // 1000} s ago: stop it first")
    record = {"dataset": settings.dataset, "drainer": holder.id, "given_back": count}
    print(json.dumps(record) if args.json else f"put {format_count(count)} errors back into the list")
    return 0


# -- progress -------------------------------------------------------------------------------------


@contextmanager
def _progress(what: str, *, quiet: bool) -> Iterator[Draw]:
    """A progress bar on a terminal's stderr."""
    if quiet or not sys.stderr.isatty():
        yield lambda _done, _total, _words: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[words]}"),
        TimeRemainingColumn(),
    )
    drawn = 0.0
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(what, total=None, words="")

        def draw(done: int, total: int, words: str) -> None:
            nonlocal drawn
            if time.monotonic() - drawn >= _DRAW_EVERY_S:
                drawn = time.monotonic()
                progress.update(bar, completed=done, total=total or None, words=words)

        yield draw
