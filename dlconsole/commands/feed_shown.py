"""What `dlconsole feed` shows: progress while it runs, and in the end what became of each list."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from dlconsole.units import printable

if TYPE_CHECKING:
    from dlconsole.services.feed_report import FeedReport
    from dlconsole.services.manifests import Place
    from dlconsole.settings import Settings

_DRAW_EVERY_S: Final = 0.1
_GO_ON: Final = "the same command goes on exactly where it ended"
_SUMS: Final = ("lines", "tasks", "fed", "bad", "blank", "duplicates", "not_http")

Draw = Callable[[Collection["FeedReport"], str], None]


def how_to_go_on(report: FeedReport) -> str:
    """How a list that was not fed to its end can be."""
    if not report.is_stream:
        return _GO_ON
    queued = f"; {report.inside:,} tasks behind that are queued already" if report.inside else ""
    return f"go on with --skip {report.lines}{queued}"


def print_result(
    reports: Mapping[Place, FeedReport],
    settings: Settings,
    *,
    as_json: bool,
    dry_run: bool,
    limit_reached: bool = False,
) -> None:
    """What became of the lists, on standard output."""
    if as_json:
        files = [{"file": str(place)} | asdict(report) for place, report in reports.items()]
        totals = {key: sum(file[key] for file in files) for key in _SUMS}
        head = {"dataset": settings.dataset, "dry_run": dry_run, "limit_reached": limit_reached}
        print(json.dumps(head | totals | {"files": files}))
        return
    for place, report in reports.items():
        print(f"{printable(str(place))}: {_words(report, settings.dataset, dry_run=dry_run)}")
        noun = "row" if report.has_columns else "line"
        for number, why in sorted(report.samples.items()):
            print(f"  {noun} {number:,}: {printable(why)}")
        if report.bad and report.rejects:
            print(f"  all bad rows are in {printable(str(report.rejects))}")
        for name, number in report.too_large.items():
            print(
                f"  column {printable(name)}: {number:,} values left out, larger than feed.max_column_bytes"
            )
        if report.stopped and not dry_run:
            print(f"  stopped; {how_to_go_on(report)}" if report.lines or report.inside else "  stopped")
        if report.limited:
            print(f"  ended at the limit; {_past_limit(report)}")


def _past_limit(report: FeedReport) -> str:
    return how_to_go_on(report) if report.is_stream else "a larger one goes on exactly there"


def _words(report: FeedReport, dataset: str, *, dry_run: bool) -> str:
    """What became of a list."""
    if report.listed:
        return "left out: it is named in the file of done lists; --again feeds it"
    if report.fed_as:
        before = printable(report.fed_as)
        return f"left out: it was fed to {dataset!r} before, as {before}; --again feeds it once more"
    extra = [
        f"{number:,} {words}"
        for number, words in (
            (report.bad, "bad row left out" if report.bad == 1 else "bad rows left out"),
            (report.blank, "blank"),
            (report.duplicates, "duplicate left out" if report.duplicates == 1 else "duplicates left out"),
            (report.not_http, "not http(s), will fail as bad_task"),
        )
        if number
    ]
    if report.fed_before:
        extra.append(f"after {report.fed_before:,} of an earlier run")
    verb, number = ("would feed", report.tasks) if dry_run else ("fed", report.fed)
    return f"{verb} {number:,} tasks to {dataset!r}" + "".join(f", {e}" for e in extra)


def progress(total_bytes: int | None, lists: int, *, quiet: bool) -> AbstractContextManager[Draw]:
    """A progress bar on a terminal's stderr. The function takes the reports so far and what is waited for.
    `total_bytes` of all `lists`; None where that is only known when they are open.
    """
    if quiet or not sys.stderr.isatty():
        return nullcontext(lambda _reports, _waiting: None)
    return _bar(total_bytes, lists)


@contextmanager
def _bar(total_bytes: int | None, lists: int) -> Iterator[Draw]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns: list[Any] = [
        TextColumn("feeding"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%" if total_bytes else ""),
        TextColumn("{task.fields[tasks]:,} tasks"),
        TextColumn("{task.fields[speed]:,.0f}/s"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[more]}", markup=False),
    ]
    started, drawn = time.monotonic(), 0.0
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task("feeding", total=total_bytes, tasks=0, speed=0.0, more="")

        def draw(reports: Collection[FeedReport], waiting: str) -> None:
            nonlocal drawn
            now = time.monotonic()
            if now - drawn >= _DRAW_EVERY_S:
                drawn = now
                tasks = sum(report.tasks for report in reports)
                bars.update(
                    bar,
                    total=total_bytes if total_bytes is not None else _found_total(reports, lists),
                    completed=sum(report.position for report in reports),
                    tasks=tasks,
                    speed=sum(report.lines - report.began_line for report in reports) / (now - started),
                    more=_more(reports, waiting),
                )

        yield draw


def _found_total(reports: Collection[FeedReport], lists: int) -> int | None:
    """The size of all lists, once all are open and say it."""
    sizes = [report.raw_bytes for report in reports]
    return sum(size or 0 for size in sizes) if len(sizes) == lists and None not in sizes else None


def _more(reports: Collection[FeedReport], waiting: str) -> str:
    """What stands at the end of the bar: only what there is."""
    bad = sum(report.bad for report in reports)
    said = [f"{bad:,} bad"] if bad else []
    duplicates = sum(report.duplicates for report in reports)
    if duplicates:
        said.append(f"{duplicates:,} duplicates")
    if waiting:
        said.append(f"waiting: {waiting}")
    return ", ".join(said)
