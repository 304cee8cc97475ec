"""The Redis that dlconsole runs by itself when none is configured: status, start, stop.

It listens on a Unix socket in a private directory, keeps its data in an append-only file under
`state_dir`, and outlives the console and the workers until `dlconsole redis stop`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict
from typing import Final

from dlconsole.commands.common import load_settings
from dlconsole.errors import RedisUnavailable, UsageError
from dlconsole.services.embedded import EmbeddedRedis, EmbeddedStatus
from dlconsole.settings import Settings, mask_url
from dlconsole.units import format_bytes, format_count, format_duration

EXIT_NOT_RUNNING: Final = 3

_EPILOG: Final = """\
exit status of `status`: 0 it runs, 3 it does not.

examples:
  dlconsole redis status           what runs, where, and how full it is
  dlconsole redis status --json    the same for machines
  dlconsole redis stop             stop it; the data stays on disk and is there at the next start
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument("action", choices=("status", "start", "stop"), help="what to do")
    parser.add_argument("--json", action="store_true", help="status as one JSON object")
    parser.add_argument("--yes", action="store_true", help="stop without asking, also under running workers")


def run(args: argparse.Namespace) -> int:
    """Do it. Raises RedisError when the server cannot be started, asked or stopped."""
    settings = load_settings(args).settings
    own = EmbeddedRedis.of(settings)
    if args.action == "status":
        return _status(own, settings, as_json=args.json)
    if settings.redis:
        print(_not_in_use(settings), file=sys.stderr)
    return _start(own) if args.action == "start" else _stop(own, confirmed=args.yes)


def _status(own: EmbeddedRedis, settings: Settings, *, as_json: bool) -> int:
    status = own.status()
    if as_json:
        found = {**asdict(status), "clients": status.clients} if status else {"directory": str(own.directory)}
        configured = mask_url(settings.redis) if settings.redis else None
        print(json.dumps({"running": status is not None, "configured": configured, **found}, indent=2))
    else:
        if settings.redis:
            print(_not_in_use(settings))
        _print_table(own, status)
    return 0 if status else EXIT_NOT_RUNNING


def _not_in_use(settings: Settings) -> str:
    return f"The settings name another server, {mask_url(settings.redis)}: the own Redis is not in use."


def _print_table(own: EmbeddedRedis, status: EmbeddedStatus | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(own, status):
        table.add_row(name, Text(value))
    # Where no terminal sets a width, paths stay whole.
    Console(highlight=False, width=None if sys.stdout.isatty() else 1000).print(table)


def _rows(own: EmbeddedRedis, status: EmbeddedStatus | None) -> list[tuple[str, str]]:
    if status is None:
        kept = "is kept there" if (own.directory / "redis.log").exists() else "none yet"
        return [("state", "not running"), ("data", f"{own.directory} ({kept})")]
    written = "written" if status.aof_ok else "CANNOT BE WRITTEN: is the disk full?"
    persistence = f"append-only file, {format_bytes(status.aof_bytes)}, {written}" if status.aof else "NONE"
    return [
        ("state", "loading its data" if status.loading else "running"),
        ("version", status.version),
        ("pid", str(status.pid)),
        ("up for", format_duration(status.uptime_s)),
        ("socket", status.socket),
        ("data", status.directory),
        ("persistence", persistence),
        ("memory", format_bytes(status.used_bytes)),
        ("when full", status.policy),
        ("keys", format_count(status.keys)),
        ("clients", _clients(status)),
        ("program", status.binary),
    ]


def _clients(status: EmbeddedStatus) -> str:
    """'3: 2 dlconsole-worker, 1 without a name'."""
    names = Counter(name or "without a name" for name in status.client_names)
    listed = ", ".join(f"{count} {name}" for name, count in names.most_common())
    return f"{status.clients}: {listed}" if listed else "none"


def _start(own: EmbeddedRedis) -> int:
    already = own.is_running()
    url = own.ensure_running()
    print(f"{'already running' if already else 'started'}: {url}")
    return 0


def _stop(own: EmbeddedRedis, *, confirmed: bool) -> int:
    if not own.is_running():
        print("not running")
        return 0
    if not confirmed and not _may_stop(own):
        print("left running")
        return 1
    print(f"stopping the own Redis in {own.directory} ...", flush=True)
    own.stop()
    print("stopped; its data stays there and is back at the next start")
    return 0


def _may_stop(own: EmbeddedRedis) -> bool:
    """Whether nobody else is connected, or the user says yes."""
    try:
        status = own.status()
    except RedisUnavailable as error:
        raise RedisUnavailable(f"{error}; add --yes to stop it all the same") from error
    return status is None or not status.clients or _confirm(status)


def _confirm(status: EmbeddedStatus) -> bool:
    count = format_count(status.clients)
    found = f"{count} other client{'s are' if status.clients > 1 else ' is'} connected ({_clients(status)})"
    if not sys.stdin.isatty():
        raise UsageError(
            f"{found}; workers would pause until it runs again: add --yes to stop it all the same"
        )
    print(f"{found}; workers pause until it runs again.")
    try:
        return input("Stop it? [y/N] ").strip().lower() in {"y", "yes"}
    except EOFError:
        print()
        return False
