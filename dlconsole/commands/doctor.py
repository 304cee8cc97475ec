"""Look for what is wrong: Redis, disk, limits, DNS, clock, permissions. Changes nothing.

One line a check: ok, warning or failure, with what to do. The only traffic beside Redis is one lookup
of a name; in the store one small file is written and taken away again.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Final

from dlconsole.commands.common import load_settings

_EPILOG: Final = "exit status: 0 all is well or worth a warning, 1 something fails."
_STYLES: Final = {"ok": "green", "warning": "yellow", "failure": "bold red"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.epilog = _EPILOG
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument(
        "--store", dest="worker.store_dir", metavar="DIR", help="the store to look at (./store)"
    )
    parser.add_argument(
        "--concurrency", dest="worker.concurrency", metavar="N", help="fetches at once that are wanted (64)"
    )


def run(args: argparse.Namespace) -> int:
    """Look, and print; 1 where something fails."""
    from rich.console import Console
    from rich.text import Text

    from dlconsole.services import doctor

    loaded = load_settings(args)
    config = loaded.config_path if loaded.config_exists else None
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 1000)
    found = []
    for check in doctor.examine(loaded.settings, config):
        found.append(check)
        if not args.json:
            line = Text.assemble((f"{check.level:8}", _STYLES[check.level]), f"{check.name:12}", check.said)
            console.print(line)
            if check.todo:
                console.print(Text(f"{'':20}→ {check.todo}"))
    failed = any(check.level == "failure" for check in found)
    if args.json:
        print(json.dumps({"ok": not failed, "checks": [asdict(check) for check in found]}))
    return 1 if failed else 0
