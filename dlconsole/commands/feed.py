"""Put URL lists into the queue: plain text, one URL a line; `-` reads standard input.

examples:
  dlconsole feed urls.txt --dataset laion5b
  dlconsole feed part-*.txt --path-template '{ds}/images/{ab}/{cd}/{sha256}.{ext}' --dry-run
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dlconsole.commands.common import load_settings
from dlconsole.commands.stopping import stop_event
from dlconsole.errors import RedisUnusable, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dlconsole.services.feeder import FeedReport
    from dlconsole.settings import Settings

_PREVIEW: Final = 3
_DRAW_EVERY_S: Final = 0.1
_GO_ON: Final = "the same command goes on exactly where it ended"
_EPILOG: Final = """\
How far a list is fed stands in Redis, moved by the pushes themselves: after Ctrl-C, a crash or a
restart of Redis the same command goes on exactly there. A list that is done is named in --done-file.
While Redis is away, loading or full it waits, from the first moment on; Ctrl-C ends that with status 130.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.epilog = _EPILOG
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="URL list; - is standard input")
    parser.add_argument(
        "--layout",
        dest="feed.layout",
        choices=("sharded", "flat"),
        help="where images go: /{ds}/images/{ab}/{cd}/{sha256}.jpg (sharded), or as legacy names them, "
        "without {ab}/{cd} (flat)",
    )
    parser.add_argument(
        "--path-template",
        dest="feed.path_template",
        metavar="TEXT",
        help="a place of your own for them, of {ds} {sha256} {ab} {cd} {ext}",
    )
    parser.add_argument("--block", dest="feed.block", metavar="N", help="tasks a push (2000)")
    parser.add_argument("--again", action="store_true", help="feed lists that are done once more")
    parser.add_argument(
        "--done-file",
        dest="feed.done_file",
        metavar="FILE",
        help="where done lists are named (./done_part.txt)",
    )
    parser.add_argument(
        "--skip", type=int, default=0, metavar="N", help="leave out the first N lines of standard input"
    )
    parser.add_argument("--dry-run", action="store_true", help="show the first tasks and count; feed nothing")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Feed the files one after the other; 0 when every list is done."""
    from dlconsole.services import embedded, manifests

    paths = list(dict.fromkeys(args.files))
    if args.skip < 0 or (args.skip and (len(paths) > 1 or not manifests.is_stream(paths[0]))):
        raise UsageError(
            "--skip takes a number of lines, and goes with standard input: files go on by themselves"
        )
    settings = load_settings(args).settings
    total = manifests.total_bytes(paths)
    if args.dry_run:
        return _dry_run(paths, settings, total, as_json=args.json)
    return _feed(paths, embedded.resolve(settings), total, args)


def _say(text: str) -> None:
    print(f"dlconsole: {text}", file=sys.stderr)


def _feed(paths: list[Path], settings: Settings, total: int | None, args: argparse.Namespace) -> int:
    from dlconsole.services.feed_run import FeedRun

    feeding = FeedRun(settings, say=_say, skip=args.skip, again=args.again)
    with stop_event() as stopped, _progress(total, quiet=args.json) as draw:

        def on_progress(waiting: str) -> bool:
            reports = feeding.reports.values()
            draw(sum(r.position for r in reports), sum(r.tasks for r in reports), waiting)
            return not stopped.is_set()

        feeding.on_progress = on_progress
        try:
            finished = feeding.run(paths)
        except RedisUnusable as error:
            raise RedisUnusable(f"{error}{_after_fault(list(feeding.reports.values()))}") from error
    if feeding.not_listed:
        _say(f"warning: done lists are not written down: {feeding.not_listed}")
    if not feeding.reports:
        _say("stopped; nothing was fed")
    _print_result(feeding.reports, settings, as_json=args.json, dry_run=False)
    return 0 if finished else 130


def _after_fault(reports: list[FeedReport]) -> str:
    """What is in the queue although the run could not go on, as a further line; '' for nothing."""
    fed = sum(report.fed for report in reports)
    return f"\n{fed:,} tasks were fed before that; {_how_to_go_on(reports[-1])}" if fed else ""


def _how_to_go_on(report: FeedReport) -> str:
    return f"go on with --skip {report.lines}" if report.size is None else _GO_ON


def _dry_run(paths: list[Path], settings: Settings, total: int | None, *, as_json: bool) -> int:
    from dlconsole.services import feeder

    reports: dict[Path, FeedReport] = {}
    first: list[bytes] = []
    with stop_event() as stopped, _progress(total, quiet=as_json) as draw:
        for path in paths:

            def on_progress(report: FeedReport, path: Path = path) -> bool:
                reports[path] = report
                draw(sum(r.position for r in reports.values()), sum(r.tasks for r in reports.values()), "")
                return not stopped.is_set()

            def on_tasks(items: list[bytes]) -> None:
                first.extend(items[: _PREVIEW - len(first)])

            reports[path] = feeder.count(path, settings, on_progress, on_tasks)
            if stopped.is_set():
                break
    if first and not as_json:
        _print_preview(first)
    _print_result(reports, settings, as_json=as_json, dry_run=True)
    return 130 if any(report.stopped for report in reports.values()) else 0


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
        print(f"{path}: {_words(report, settings.dataset, dry_run=dry_run)}")
        for line, why in sorted(report.samples.items()):
            print(f"  line {line:,}: {why}")
        if report.stopped and not dry_run:
            print(f"  stopped; {_how_to_go_on(report)}" if report.lines else "  stopped")


def _words(report: FeedReport, dataset: str, *, dry_run: bool) -> str:
    """What became of a list."""
    if report.listed:
        return "left out: it is named in the file of done lists; --again feeds it"
    if report.fed_as:
        return f"left out: it was fed to {dataset!r} before, as {report.fed_as}; --again feeds it once more"
    extra = [
        f"{number:,} {words}"
        for number, words in (
            (report.bad, "bad row left out" if report.bad == 1 else "bad rows left out"),
            (report.blank, "blank"),
            (report.not_http, "not http(s), will fail as bad_task"),
        )
        if number
    ]
    if report.fed_before:
        extra.append(f"after {report.fed_before:,} of an earlier run")
    verb, number = ("would feed", report.tasks) if dry_run else ("fed", report.fed)
    return f"{verb} {number:,} tasks to {dataset!r}" + "".join(f", {e}" for e in extra)


def _progress(total: int | None, *, quiet: bool) -> AbstractContextManager[Callable[[int, int, str], None]]:
    """A progress bar on a terminal's stderr; the function takes bytes read and tasks so far, and what is
    waited for.
    """
    if quiet or not sys.stderr.isatty():
        return nullcontext(lambda _position, _tasks, _waiting: None)
    return _bar(total)


@contextmanager
def _bar(total: int | None) -> Iterator[Callable[[int, int, str], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns: list[Any] = [
        TextColumn("feeding"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%" if total else ""),
        TextColumn("{task.fields[tasks]:,} tasks"),
        TextColumn("{task.fields[speed]:,.0f}/s"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[waiting]}", markup=False),
    ]
    started, drawn = time.monotonic(), 0.0
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("feeding", total=total, tasks=0, speed=0.0, waiting="")

        def draw(position: int, tasks: int, waiting: str) -> None:
            nonlocal drawn
            now = time.monotonic()
            if now - drawn >= _DRAW_EVERY_S:
                drawn = now
                said = f"waiting: {waiting}" if waiting else ""
                speed = tasks / (now - started)
                progress.update(bar, completed=position, tasks=tasks, speed=speed, waiting=said)

        yield draw
