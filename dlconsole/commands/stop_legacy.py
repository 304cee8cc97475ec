"""End legacy workers: N stop sentinels go where they are taken next, and each ends one worker.

Whoever takes a sentinel ends, also a worker of dlconsole: where both run, stop those first. A
sentinel that nobody takes stays in the queue and ends the next worker that comes.

example:
  dlconsole stop-legacy 8 --dataset laion5b
"""

from __future__ import annotations

import argparse
import sys

from dlconsole.commands.common import load_settings
from dlconsole.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("count", type=int, metavar="N", help="how many workers to end")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def run(args: argparse.Namespace) -> int:
    """Ask, then do it; 0 when the sentinels are in the queue, 1 when the answer was no."""
    from dlconsole.services import control, embedded
    from dlconsole.services.permission import require_writable

    if not 1 <= args.count <= control.MAX_SENTINELS:
        raise UsageError(f"N is from 1 to {control.MAX_SENTINELS}")
    settings = load_settings(args).settings
    require_writable(settings, "stopping workers")  # before a question that leads nowhere
    settings = embedded.resolve(settings)
    if not args.yes and not _confirm(args.count, settings.dataset):
        print("nothing was done")
        return 1
    control.stop_legacy(settings, args.count)
    print(f"{_sentinels(args.count)} in the queue of {settings.dataset!r}, next to be taken")
    return 0


def _sentinels(count: int) -> str:
    return f"{count} stop sentinel{'s are' if count > 1 else ' is'}"


def _confirm(count: int, dataset: str) -> bool:
    found = f"{count} worker{'s' if count > 1 else ''} of {dataset!r} will end, and cannot be called back"
    if not sys.stdin.isatty():
        raise UsageError(f"{found}: add --yes to do it without being asked")
    print(f"{found}.")
    try:
        return input(
            f"Put {count} stop sentinel{'s' if count > 1 else ''} into the queue? [y/N] "
        ).strip().lower() in {"y", "yes"}
    except EOFError:
        print()
        return False
