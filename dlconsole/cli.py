"""argv → one command. Nothing heavy is imported before the command is known."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from dlconsole import __version__
from dlconsole.errors import DlconsoleError
from dlconsole.units import printable

COMMANDS: Final = {
    "console": "the operations console (what `dlconsole` alone opens)",
    "worker": "headless downloaders, the same as `dlconsole --worker`",
    "feed": "put URL lists into the queue",
    "errors": "failed tasks: count them, export them to files, put them back into the queue",
    "ledger": "what became of each task: count it, merge it, export it as a table",
    "status": "one picture of the fleet, for scripts and for terminals without a console",
    "sites": "the sites that the fleet fetches from: speed, failures, times, pauses",
    "pause": "let the whole fleet take no more tasks",
    "resume": "let a paused fleet go on",
    "stop-legacy": "end N legacy workers",
    "doctor": "look for what is wrong: Redis, disk, limits, DNS, clock, permissions",
    "demo": "the whole path on a simulated web: feed, two workers, the console on top",
    "redis": "the Redis that dlconsole runs by itself: status, start, stop",
    "config": "the settings and where each comes from; take over those of the legacy scripts",
}

_VALUE_OPTIONS: Final = frozenset({"--config", "--context", "--redis", "--dataset"})
"""Common options whose next word is their value, not a command."""

_EPILOG: Final = """\
examples:
  dlconsole                               open the console
  dlconsole feed urls.txt                 queue a URL list
  dlconsole --worker --store /data        download until stopped
  dlconsole --worker --until-empty        download until the queue is empty
  dlconsole demo                          see it work, without any network

Every command takes --config, --context, --redis and --dataset; `dlconsole COMMAND --help` has the rest.
"""


class _Parser(argparse.ArgumentParser):
    """An argparse that takes no half flags, whose meaning changes with each new one, and does not repeat
    passwords: a misplaced URL ends up in its messages.
    """

    more_help: Callable[[], str] | None = None
    """What stands at the end of the help, made when it is asked for: it may need imports that take long."""

    def __init__(self, **more: Any) -> None:
        super().__init__(allow_abbrev=False, **more)

    def format_help(self) -> str:
        """The whole help."""
        if self.more_help is not None:
            self.epilog = self.more_help()
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        super().error(re.sub(r"://\S*@", "://***@", re.sub(r"(pass\w*=)[^&\s']*", r"\1***", message)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0 done, 1 failed, 2 wrong use or settings, 3 Redis, 130 Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser, words = _parser_for(words)
    args = parser.parse_args(words)
    try:
        status = int(args.run(args))
        sys.stdout.flush()  # here, where a closed pipe is no error
        return status
    except DlconsoleError as error:
        if args.debug:
            raise
        for line in str(error).splitlines():
            print(f"dlconsole: {printable(line)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("dlconsole: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `dlconsole ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser_for(words: list[str]) -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser of the command that `words` name, and the words without its name."""
    name, words = _split_command(words)
    if not name:
        return _top_parser(), words
    module = importlib.import_module(f"dlconsole.commands.{name.replace('-', '_')}")
    parser = _Parser(
        prog=f"dlconsole {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=module.run)
    parser.more_help = getattr(module, "more_help", None)
    _add_common(parser)
    module.configure(parser)
    return parser, words


def _split_command(words: list[str]) -> tuple[str, list[str]]:
    """The command's name, '' for dlconsole itself, and the other words; common options may come first."""
    if "--worker" in words and words[0] not in COMMANDS:
        return "worker", [word for word in words if word != "--worker"]
    for index, word in enumerate(words):
        if word in COMMANDS and (index == 0 or words[index - 1] not in _VALUE_OPTIONS):
            return word, words[:index] + words[index + 1 :]
    if words and not words[0].startswith("-"):
        _top_parser().error(f"unknown command {words[0]!r} (commands: {', '.join(COMMANDS)})")
    is_top = any(word in {"-h", "--help", "--version"} for word in words)
    return "" if is_top else "console", words


def _top_parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    parser = _Parser(
        prog="dlconsole",
        usage="dlconsole [COMMAND] [options]\n       dlconsole --worker [options]",
        description="An operations console and headless workers for fleets of dataset downloaders.\n\n"
        f"commands:\n{listing}",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dlconsole {__version__}")
    _add_common(parser)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("connection and settings")
    group.add_argument("--config", type=Path, metavar="FILE", help="settings file instead of the usual one")
    group.add_argument("--context", metavar="NAME", help="a connection named in the settings file")
    group.add_argument(
        "--redis",
        metavar="URL",
        help="redis://HOST:PORT/DB, rediss://… or unix:///socket; without one, dlconsole runs its own",
    )
    group.add_argument("--dataset", metavar="NAME", help="the dataset: the prefix of the Redis keys")
    group.add_argument("--debug", action="store_true", help="show stack traces")
