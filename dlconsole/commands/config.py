"""The settings: every value and where it comes from, where the settings file is, or one made of the scripts'.

show           every value. Defaults, the settings file, the environment (DLCONSOLE_…) and flags are merged
               in this order; a context's values stand just below whatever chose it
path           the settings file, also if there is none yet
import-legacy  reads the setting.py of the legacy scripts, without running it, and writes a settings file
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Final

from dlconsole.commands.common import load_settings
from dlconsole.config import Loaded, config_path, flat
from dlconsole.errors import UsageError

_EPILOG: Final = """\
examples:
  dlconsole config show                    every setting, its value and where it comes from
  dlconsole config show --context prod     the same under a context
  dlconsole config path                    the settings file, also if there is none yet
  dlconsole config import-legacy setting.py --name prod --output prod.toml

import-legacy has status 1 where no Redis or no dataset was found; it names what it did not take over.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument("action", choices=("show", "path", "import-legacy"), help="what to do")
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="import-legacy: the setting.py")
    parser.add_argument("--json", action="store_true", help="print one JSON object, passwords masked")
    parser.add_argument("--name", metavar="NAME", help="import-legacy: the context's name (the dataset's)")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="import-legacy: write this file, for your eyes only, where none is yet (standard output)",
    )


def run(args: argparse.Namespace) -> int:
    """Print it. Raises ConfigError for wrong settings; only `show` reads them."""
    if args.action == "import-legacy":
        return _import_legacy(args)
    if args.file is not None or args.name is not None or args.output is not None:
        raise UsageError(f"`config {args.action}` takes no file, --name or --output")
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


def _import_legacy(args: argparse.Namespace) -> int:
    from dlconsole.commands import import_legacy

    if args.file is None:
        raise UsageError("import-legacy takes the scripts' setting.py")
    return import_legacy.run(args)


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
