"""Put URL lists into the queue: plain text, one URL a line; `-` reads standard input.

examples:
  dlconsole feed urls.txt --dataset laion5b
  dlconsole feed part-*.txt --path-template '{ds}/images/{ab}/{cd}/{sha256}.{ext}' --dry-run
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from dlconsole.commands.common import load_settings
from dlconsole.errors import RedisError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dlconsole.services.feeder import FeedReport
    from dlconsole.settings import Settings

_DRAW_EVERY_S: Final = 0.1


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="URL list; - is standard input")
    parser.add_argument(
        "--path-template",
        dest="feed.path_template",
        metavar="TEXT",
        help="where images go, of {ds} {sha256} {ab} {cd} {ext} (/{ds}/images/{sha256}.jpg)",
    )
    parser.add_argument("--block", dest="feed.block", metavar="N", help="tasks a push (2000)")
    parser.add_argument("--skip", type=int, default=0, metavar="N", help="leave out the first N lines")
    parser.add_argument("--dry-run", action="store_true", help="show the first tasks and count; feed nothing")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Feed the files one after the other; 0 when every line was read."""
    from dlconsole.services import embedded, feeder, manifests

    if args.skip < 0 or (args.skip and len(args.files) > 1):
        raise UsageError("--skip takes a number of lines, and goes with one file")
    settings = load_settings(args).settings
    total = manifests.total_bytes(args.files)
    if not args.dry_run:
        settings = embedded.resolve(settings)
    elif not args.json:
        _print_preview(feeder.preview(args.files[0], settings, 3))
    reports: dict[Path, FeedReport] = {}
    done_bytes = 0
    with _stop_flag() as stopped, _progress(total, quiet=args.json) as draw:
        for path in args.files:
            before = done_bytes

            def on_progress(report: FeedReport, path: Path = path, before: int = before) -> bool:
                reports[path] = report
                draw(before + report.position, sum(r.tasks for r in reports.values()))
                return not stopped()

            try:
                reports[path] = feeder.feed(
                    path, settings, skip=args.skip, push=not args.dry_run, on_progress=on_progress
                )
            except RedisError as error:
                raise type(error)(_how_to_go_on(error, path, reports.get(path), args.skip)) from error
            if reports[path].stopped:
                break
            done_bytes += path.stat().st_size if total else 0
    _print_result(reports, settings, as_json=args.json, dry_run=args.dry_run)
    return 130 if any(report.stopped for report in reports.values()) else 0


def _how_to_go_on(error: RedisError, path: Path, report: FeedReport | None, skip: int) -> str:
    if report is None:
        return f"{error}\n{path}: nothing was fed"
    return (
        f"{error}\n{path}: at least {report.fed} tasks are fed, of the first {report.lines} lines; "
        f"the last block may or may not be (go on with --skip {max(skip, report.lines)})"
    )


def _print_preview(items: list[bytes]) -> None:
    print("The first tasks would be:")
    for item in items:
        print("  " + item.decode())


def _print_result(
    reports: dict[Path, FeedReport], settings: Settings, *, as_json: bool, dry_run: bool
) -> None:
    if as_json:
        files = [{"file": str(path)} | asdict(report) for path, report in reports.items()]
        totals = {
            key: sum(f[key] for f in files) for key in ("lines", "tasks", "fed", "bad", "blank", "not_http")
        }
        print(json.dumps({"dataset": settings.dataset, "dry_run": dry_run, **totals, "files": files}))
        return
    for path, report in reports.items():
        count = report.tasks if dry_run else report.fed
        extra = [
            f"{number:,} {words}"
            for number, words in (
                (report.bad, "bad rows left out"),
                (report.blank, "blank"),
                (report.not_http, "not http(s), will fail as bad_task"),
            )
            if number
        ]
        verb = "would feed" if dry_run else "fed"
        print(f"{path}: {verb} {count:,} tasks to {settings.dataset!r}" + "".join(f", {e}" for e in extra))
        for line, why in report.samples:
            print(f"  line {line:,}: {why}")
        if report.stopped:
            print(f"  stopped; go on with: dlconsole feed {path} --skip {report.lines}")


@contextmanager
def _stop_flag() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM end feeding between two blocks; a second one ends it at once."""
    stopped = False

    def handle(_number: int, _frame: FrameType | None) -> None:
        nonlocal stopped
        if stopped:
            raise KeyboardInterrupt
        stopped = True

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: stopped
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _progress(total: int | None, *, quiet: bool) -> AbstractContextManager[Callable[[int, int], None]]:
    """A progress bar on a terminal's stderr; the function takes bytes read and tasks so far."""
    if quiet or not sys.stderr.isatty():
        return nullcontext(lambda _position, _tasks: None)
    return _bar(total)


@contextmanager
def _bar(total: int | None) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns: list[Any] = [
        TextColumn("feeding"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%" if total else ""),
        TextColumn("{task.fields[tasks]:,} tasks"),
        TextColumn("{task.fields[speed]:,.0f}/s"),
        TimeRemainingColumn(),
    ]
    started, drawn = time.monotonic(), 0.0
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("feeding", total=total, tasks=0, speed=0.0)

        def draw(position: int, tasks: int) -> None:
            nonlocal drawn
            now = time.monotonic()
            if now - drawn >= _DRAW_EVERY_S:
                drawn = now
                progress.update(bar, completed=position, tasks=tasks, speed=tasks / (now - started))

        yield draw
