"""The settings: every value and where it comes from, or where the settings file is.

Defaults, the settings file, the environment (DLCONSOLE_…) and flags are merged in this order; a
context's values stand just below whatever chose it.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, Final

from dlconsole.commands.common import load_settings
from dlconsole.config import Loaded, config_path, flat

_EPILOG: Final = """\
examples:
  dlconsole config show                    every setting, its value and where it comes from
  dlconsole config show --context prod     the same under a context
  dlconsole config path                    the settings file, also if there is none yet
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument("action", choices=("show", "path"), help="what to print")
    parser.add_argument("--json", action="store_true", help="show as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print it. Raises ConfigError for wrong settings; `path` does not read them."""
    if args.action == "path":
        path = config_path(args.config)
        print(path)
        print("exists" if path.is_file() else "does not exist yet", file=sys.stderr)
        return 0
    loaded = load_settings(args)
    if args.json:
        print(json.dumps(_as_json(loaded), indent=2, ensure_ascii=False))
    else:
        _print_table(loaded)
    return 0


def _as_json(loaded: Loaded) -> dict[str, Any]:
    return {
        "config": {"path": str(loaded.config_path), "exists": loaded.config_exists},
        "settings": {
            key: {"value": value, "from": loaded.origins.get(key, "default")}
            for key, value in flat(loaded.settings)
        },
    }


def _print_table(loaded: Loaded) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("setting", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("from", overflow="fold")
    for key, value in flat(loaded.settings):
        origin = loaded.origins.get(key, "default")
        table.add_row(key, Text(_show(value)), Text(origin), style="dim" if origin == "default" else "")
    # Where no terminal sets a width, paths stay whole.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 1000)
    console.print(table)
    if not loaded.config_exists:
        console.print(Text(f"\nThere is no settings file yet; it would be {loaded.config_path}"))


def _show(value: Any) -> str:
    """A value as the settings file writes it."""
    return json.dumps(value, ensure_ascii=False)
