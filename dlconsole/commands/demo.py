"""See it work: a private Redis, a simulated web, 5,000 tasks, two workers, the console on top.

Nothing of it touches the network or your settings' Redis, and nothing is left behind. Without a
terminal, or with --headless, a progress bar and a summary; the exit status is 0 only if every task
is accounted for.

examples:
  dlconsole demo
  dlconsole demo --headless --urls my-list.txt --json
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from dlconsole.commands.common import load_settings
from dlconsole.commands.stopping import stop_event
from dlconsole.errors import UsageError

if TYPE_CHECKING:
    from dlconsole.demo.run import Demo, DemoResult
    from dlconsole.model import FleetSnapshot


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("--tasks", type=int, metavar="N", help="how many tasks (5000)")
    parser.add_argument(
        "--urls", type=Path, metavar="FILE", help="a URL list, fetched through the web as proxy"
    )
    parser.add_argument("--headless", action="store_true", help="no console: a progress bar and a summary")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON; implies --headless")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="worker processes (2)")
    parser.add_argument("--concurrency", type=int, metavar="N", help="fetches at once in each process")
    parser.add_argument(
        "--shares", default="", metavar="K=F,…", help="how the web answers: 404=0.05,slow=0.01"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed, another web")
    parser.add_argument("--store", type=Path, metavar="DIR", help="keep the images here (a new folder)")


def run(args: argparse.Namespace) -> int:
    """Run the demo; 0 only if every task is accounted for (headless) or the console was quit."""
    if args.redis:
        raise UsageError("the demo runs on a private Redis of its own; leave out --redis")
    if args.urls is not None and args.tasks is not None:
        raise UsageError("--tasks is how many URLs to make up; with --urls the list says how many")
    tasks = 5000 if args.tasks is None else args.tasks
    if not (1 <= tasks <= 10_000_000 and 1 <= args.processes <= 64):
        raise UsageError("--tasks takes 1 to 10000000, --processes 1 to 64")
    if args.concurrency is not None and not 1 <= args.concurrency <= 4096:
        raise UsageError("--concurrency takes 1 to 4096")
    from dlconsole.demo.behaviour import Shares

    shares = Shares.parse(args.shares) if args.shares else Shares()
    from dlconsole.demo.run import Demo, DemoPlan

    watched = not (args.headless or args.json) and all(
        s.isatty() for s in (sys.stdin, sys.stdout, sys.stderr)
    )
    plan = DemoPlan(
        tasks=tasks,
        urls=args.urls,
        shares=shares,
        seed=args.seed,
        processes=args.processes,
        concurrency=args.concurrency or (16 if watched else 64),
        store=args.store,
        watched=watched,
    )
    settings = load_settings(args).settings
    with _terminable(), Demo(plan, settings) as demo:
        if watched:
            return _run_console(demo)
        # A flag, not an interrupt: cancelling the loop's task just before it enters a timeout is lost
        # (CPython 3.11 to 3.13), and the demo would go on.
        with stop_event() as stop, _progress(demo.fed.tasks, args.processes, quiet=args.json) as draw:
            result = demo.watch(draw, stop)
        if result is None:
            raise KeyboardInterrupt
    _print_result(result, as_json=args.json)
    return 0 if result.accounted else 1


def _run_console(demo: Demo) -> int:
    from dlconsole.app import run_console

    with demo.tended():
        return run_console(demo.settings, "the demo's own Redis", lambda: demo.quit_note)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does, so that it cleans up."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        signal.raise_signal(signal.SIGINT)

    old = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    # A shell's `&` starts it with SIGINT ignored; then the others would end in nothing.
    old[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def _progress(total: int, processes: int, *, quiet: bool) -> Iterator[Callable[[FleetSnapshot], None]]:
    """A bar on a terminal's stderr; elsewhere a line at the start."""
    if quiet:
        yield lambda _snapshot: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns: list[Any] = [
        TextColumn("downloading"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]} images/s"),
        TimeRemainingColumn(),
    ]
    if not console.is_terminal:
        console.print(
            f"dlconsole demo: {total:,} tasks on a simulated web, {processes} workers, a private Redis …"
        )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("downloading", total=total, speed="-")

        def draw(snapshot: FleetSnapshot) -> None:
            rate = snapshot.rates.stored_per_s
            speed = "-" if rate is None else f"{rate:,.0f}"
            progress.update(bar, completed=snapshot.counts.done, speed=speed)

        yield draw


def _print_result(result: DemoResult, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result.to_json()))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from dlconsole.units import format_bytes

    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("tasks", f"{result.tasks:,}")
    table.add_row("stored", f"{result.stored:,}", style="green")
    table.add_row("failed", f"{result.failed:,}", style="red")
    for kind, count in result.kinds.items():
        table.add_row(f"  {kind}", f"{count:,}")
    table.add_row("on disk", f"{result.files:,} files, {format_bytes(result.file_bytes)}")
    table.add_row("time", f"{result.seconds:.1f} s, {result.stored / result.seconds:,.0f} images/s")
    console = Console()
    console.print(table)
    if result.accounted:
        console.print("Every task is accounted for: stored + failed = fed.")
    else:
        console.print(f"NOT every task is accounted for: {json.dumps(result.to_json())}", soft_wrap=True)
