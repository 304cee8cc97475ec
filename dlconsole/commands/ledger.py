"""The ledger of a dataset: what became of each task, with its caption and its columns.

stats    counts it: outcomes, kinds of failures, formats, sizes
merge    writes one file with the last line of each task, which can be read as a ledger again
export   writes one row a task as Parquet, CSV or JSON Lines, in the order of the source
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dlconsole.commands.common import load_settings
from dlconsole.commands.stopping import stop_event
from dlconsole.errors import UsageError
from dlconsole.units import format_bytes, format_count, format_duration, printable

if TYPE_CHECKING:
    from dlconsole.services.ledger_export import Written
    from dlconsole.services.ledger_files import Found
    from dlconsole.services.ledger_merge import Plan, Reading, Watch
    from dlconsole.services.ledger_stats import LedgerStats, Sizes

_DRAW_EVERY_S: Final = 0.1
_PERCENTS: Final = (5, 50, 95)
_SHOWN: Final = 20
_EPILOG: Final = """\
examples:
  dlconsole ledger stats --store /data --dataset laion5b
  dlconsole ledger export --store /data --dataset laion5b --output laion5b.parquet
  dlconsole ledger export --store /mnt/a --store /mnt/b --only stored --columns path,caption --output pets.csv
  dlconsole ledger merge --file old/*.jsonl.zst --output laion5b.jsonl.zst

Of several lines of one task the last counts: it ended latest. Workers may write meanwhile: what was there at
the start is read. What does not fit into memory is sorted in temporary files without a name, about as large
as the ledger (for `stats` a fifth of it), which are gone however the command ends.
"""
_ONLY: Final = {
    "output": ("merge", "export"),
    "force": ("merge", "export"),
    "to": ("export",),
    "only": ("export",),
    "columns": ("export",),
}
"""Which actions an argument goes with."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.epilog = _EPILOG
    parser.add_argument("action", choices=("stats", "merge", "export"), help="what to do")
    parser.add_argument(
        "--store",
        action="append",
        type=Path,
        dest="stores",
        metavar="DIR",
        help="the store whose ledger is read (./store); several times for several hosts' stores",
    )
    parser.add_argument(
        "--file", nargs="+", type=Path, metavar="FILE", help="these files instead of a store's ledger"
    )
    parser.add_argument(
        "--temp", type=Path, metavar="DIR", help="where to sort (beside the output; stats: $TMPDIR)"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be read, and what that takes")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument("--output", type=Path, metavar="FILE", help="merge, export: the file to write")
    parser.add_argument("--force", action="store_true", help="merge, export: replace it where it is there")
    export = parser.add_argument_group("export")
    export.add_argument("--to", choices=("parquet", "csv", "jsonl"), help="the format (as the name ends)")
    export.add_argument("--only", choices=("stored", "failed"), help="only tasks with this outcome")
    export.add_argument("--columns", metavar="A,B", help="only these columns, in this order")


def run(args: argparse.Namespace) -> int:
    """Do it; 0 when it was done, 130 when it was interrupted."""
    from dlconsole.services.ledger_files import find, of_files
    from dlconsole.services.ledger_merge import STATS_PAYLOAD_BYTES, Watch, check_room, plan

    _check(args)
    settings = load_settings(args).settings
    args.dataset = settings.dataset
    if args.action != "stats":
        _check_output(args)
    found = (
        of_files(args.file) if args.file else find(args.stores or [settings.worker.store_dir], args.dataset)
    )
    temp = args.temp or (args.output.absolute().parent if args.output else Path(tempfile.gettempdir()))
    planned = plan(found, STATS_PAYLOAD_BYTES if args.action == "stats" else None)
    if args.dry_run:
        _print_plan(args, found, planned, temp)
        return 0
    check_room(planned, temp)
    with stop_event() as stop, _progress(quiet=args.json) as tell:
        result = {"stats": _stats, "merge": _merge, "export": _export}[args.action](
            args, found, temp, Watch(stop, tell)
        )
    result()
    return 0


def _check(args: argparse.Namespace) -> None:
    for name, goes_with in _ONLY.items():
        if getattr(args, name) and args.action not in goes_with:
            raise UsageError(f"`ledger {args.action}` takes no --{name}")
    if args.file and args.stores:
        raise UsageError("--file and --store do not go together: name the files, or their stores")
    if args.action != "stats" and args.output is None:
        raise UsageError(f"`ledger {args.action}` needs --output FILE")


def _check_output(args: argparse.Namespace) -> None:
    """What can be said before anything is read."""
    from dlconsole.services.ledger_export import FORMATS, format_of, require_parquet
    from dlconsole.services.ledger_output import check_output

    if args.action == "export":
        args.to = args.to or format_of(args.output)
        if args.to == "parquet":
            require_parquet()
    elif not args.output.name.endswith(FORMATS["jsonl"]):
        raise UsageError(f"{args.output}: a merged ledger's name ends in {', '.join(FORMATS['jsonl'])}")
    if not args.dry_run:
        check_output(args.output, force=args.force)


def _say(text: str) -> None:
    print(f"dlconsole: {printable(text)}", file=sys.stderr)


def _reading_record(reading: Reading) -> dict[str, Any]:
    return asdict(reading) | {"superseded": reading.superseded}


def _say_reading(reading: Reading) -> None:
    """What is not as it should be."""
    from dlconsole.widgets.text import clean

    for words in reading.left_out:
        _say(f"left out: {words}")
    for path in reading.torn:
        _say(f"{path}: the last line is unfinished (still being written, or cut off); dropped")
    if reading.bad:
        lines = "1 line is" if reading.bad == 1 else f"{format_count(reading.bad)} lines are"
        _say(f"warning: {lines} no ledger's, and left out:")
        for words in reading.samples:
            _say(f"  {clean(words)}")


# -- dry run ----------------------------------------------------------------------------------------


def _print_plan(args: argparse.Namespace, found: Found, planned: Plan, temp: Path) -> None:
    from dlconsole.services.disk import existing, usage_of

    free_bytes = usage_of(existing(temp)).free_bytes
    if args.json:
        record = asdict(planned) | {"temp": str(temp), "temp_free_bytes": free_bytes}
        print(json.dumps({"dataset": args.dataset, "dry_run": True, **record}))
        return
    for file in found.files[:_SHOWN]:
        print(f"{format_bytes(file.size):>10}  {file.path}")
    if len(found.files) > _SHOWN:
        print(f"{'':>10}  and {format_count(len(found.files) - _SHOWN)} more files")
    text = (
        f", about {format_bytes(planned.text_bytes)} unpacked" if planned.text_bytes != planned.bytes else ""
    )
    print(f"would read   {format_bytes(planned.bytes)} in {_files(planned.files)}{text}")
    print(f"lines        about {format_count(planned.lines)}")
    need, free = format_bytes(planned.temp_bytes), format_bytes(free_bytes)
    room = (
        f"about {need} in {temp}, where {free} are free"
        if planned.temp_bytes
        else "none: it fits into memory"
    )
    print(f"temporary    {room}")
    if args.output:
        print(f"would write  {args.output}" + (", which is there already" if args.output.exists() else ""))


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{format_count(count)} files"


# -- merge and export -------------------------------------------------------------------------------


def _merge(args: argparse.Namespace, found: Found, temp: Path, watch: Watch) -> Callable[[], None]:
    from dlconsole.services.ledger_export import merge

    written = merge(found, args.output, temp, watch, force=args.force)
    return lambda: _print_written(args, written)


def _export(args: argparse.Namespace, found: Found, temp: Path, watch: Watch) -> Callable[[], None]:
    from dlconsole.services.ledger_export import export

    columns = [name for name in (args.columns or "").split(",") if name]
    written = export(
        found, args.output, args.to, temp, watch, only=args.only, columns=columns, force=args.force
    )
    return lambda: _print_written(args, written)


def _print_written(args: argparse.Namespace, written: Written) -> None:
    reading = written.reading
    if args.json:
        columns = [{"name": column.name, "type": column.type} for column in written.columns]
        record = {
            "output": str(args.output),
            "rows": written.rows,
            "bytes": written.bytes,
            "columns": columns,
            "replaced": written.replaced,
        }
        print(json.dumps({"dataset": args.dataset, **record, "read": _reading_record(reading)}))
        return
    _say_reading(reading)
    if written.replaced:
        _say(f"{format_count(written.replaced)} values had half a character, which became U+FFFD")
    rows = f"{format_count(written.rows)} {'lines' if args.action == 'merge' else 'rows'}"
    if args.only:
        rows += f" of {format_count(reading.tasks)} tasks"
    columns_words = f" of {len(written.columns)} columns" if written.columns else ""
    print(f"{args.output}: {rows}{columns_words}, {format_bytes(written.bytes)}")
    print(f"  from {_read_words(reading)}")


def _read_words(reading: Reading) -> str:
    words = f"{format_count(reading.lines)} lines in {_files(reading.files)}, {format_bytes(reading.bytes)}"
    return words + f"; {format_count(reading.superseded)} superseded by later ones"


# -- stats ------------------------------------------------------------------------------------------


def _stats(args: argparse.Namespace, found: Found, temp: Path, watch: Watch) -> Callable[[], None]:
    from dlconsole.services.ledger_stats import stats

    counted, reading = stats(found, temp, watch)

    def show() -> None:
        if args.json:
            print(
                json.dumps(
                    {"dataset": args.dataset, **_stats_record(counted)} | {"read": _reading_record(reading)}
                )
            )
            return
        _say_reading(reading)
        for line in _stats_lines(counted):
            print(line)
        print(f"read         {_read_words(reading)}")

    return show


def _stats_record(counted: LedgerStats) -> dict[str, Any]:
    return {
        "tasks": counted.tasks,
        "stored": counted.stored,
        "failed": counted.failed,
        "success_ratio": counted.success_ratio,
        "kinds": dict(counted.kinds.most_common()),
        "formats": dict(counted.formats.most_common()),
        "attempts": {str(number): count for number, count in sorted(counted.attempts.items())},
        "width": _sizes_record(counted.width),
        "height": _sizes_record(counted.height),
        "bytes": _sizes_record(counted.bytes),
        "first_ms": counted.first_ms,
        "last_ms": counted.last_ms,
    }


def _sizes_record(sizes: Sizes) -> dict[str, Any]:
    record: dict[str, Any] = {f"p{percent}": sizes.percentile(percent) for percent in _PERCENTS}
    return record | {
        "max": sizes.greatest if sizes.count else None,
        "total": sizes.total,
        "count": sizes.count,
    }


def _stats_lines(counted: LedgerStats) -> Iterator[str]:
    from dlconsole.widgets.text import clean

    yield f"tasks        {format_count(counted.tasks)}"
    yield f"stored       {_share(counted.stored, counted.tasks)}"
    yield f"failed       {_share(counted.failed, counted.tasks)}"
    for kind, count in counted.kinds.most_common(_SHOWN):
        yield f"  {clean(kind):<20} {format_count(count):>12}"
    formats = ", ".join(
        f"{clean(name)} {format_count(count)}" for name, count in counted.formats.most_common(_SHOWN)
    )
    yield f"formats      {formats or '-'}"
    yield f"bytes        {format_bytes(counted.bytes.total)}"
    if counted.bytes.count:
        yield f"{'':<13}{'p5':>9} {'p50':>9} {'p95':>9} {'max':>9}"
        yield _sizes_line("an image", counted.bytes, format_bytes)
        yield _sizes_line("width, px", counted.width, str)
        yield _sizes_line("height, px", counted.height, str)
    attempts = ", ".join(
        f"{number}: {format_count(count)}" for number, count in sorted(counted.attempts.items())[:_SHOWN]
    )
    yield f"attempts     {attempts or '-'}"
    if counted.first_ms is not None and counted.last_ms is not None:
        took = format_duration((counted.last_ms - counted.first_ms) / 1000)
        yield f"time         {_time(counted.first_ms)} to {_time(counted.last_ms)}, {took}"


def _share(count: int, total: int) -> str:
    return f"{format_count(count)}" + (f", {100 * count / total:.1f} %" if total else "")


def _sizes_line(name: str, sizes: Sizes, show: Callable[[int], str]) -> str:
    values = [sizes.percentile(percent) for percent in _PERCENTS] + [sizes.greatest if sizes.count else None]
    return f"  {name:<11}" + " ".join(f"{'-' if value is None else show(value):>9}" for value in values)


def _time(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


# -- progress ---------------------------------------------------------------------------------------


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[str, int, int, int], None]]:
    """A progress bar on a terminal's stderr, one for each phase."""
    if quiet or not sys.stderr.isatty():
        yield lambda _phase, _done, _total, _rows: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[rows]:,} rows"),
        TextColumn("{task.fields[speed]:,.0f}/s"),
        TimeRemainingColumn(),
    )
    bars: dict[str, tuple[TaskID, float]] = {}
    drawn = 0.0
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:

        def tell(phase: str, done: int, total: int, rows: int) -> None:
            nonlocal drawn
            now = time.monotonic()
            if phase not in bars:
                for bar, _ in bars.values():
                    progress.update(bar, visible=False)
                bars[phase] = progress.add_task(phase, total=total, rows=0, speed=0.0), now
            elif now - drawn >= _DRAW_EVERY_S:
                drawn = now
                bar, began = bars[phase]
                progress.update(bar, completed=done, total=total, rows=rows, speed=rows / (now - began))

        yield tell
