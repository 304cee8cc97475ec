"""The operations console: the fleet's state, live, in the terminal.

example:
  dlconsole --redis redis://10.0.0.5/0 --dataset laion5b
"""

from __future__ import annotations

import argparse
import sys

from dlconsole.commands.common import load_settings
from dlconsole.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("--refresh", dest="console.refresh_s", metavar="TIME", help="between pictures (2s)")
    parser.add_argument(
        "--read-only", dest="read_only", action="store_true", default=None, help="look, but change nothing"
    )


def run(args: argparse.Namespace) -> int:
    """Open the console; 0 when it was quit."""
    loaded = load_settings(args)
    # Textual draws on standard error.
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            "the console needs a terminal as standard input and standard error; "
            "without one, see: dlconsole --help"
        )
    from dlconsole.app import run_console
    from dlconsole.settings import redis_name

    settings = loaded.settings
    if not settings.redis:  # else Redis is not even imported before the first picture
        from dlconsole.services import embedded

        settings = embedded.resolve(settings)
    return run_console(settings, redis_name(loaded.settings))
