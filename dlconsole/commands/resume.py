"""Let a paused fleet go on.

example:
  dlconsole resume --dataset laion5b
"""

from __future__ import annotations

import argparse

from dlconsole.commands.common import load_settings


def configure(_parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""


def run(args: argparse.Namespace) -> int:
    """Do it; 0 also where the fleet was not paused."""
    from dlconsole.services import control, embedded

    settings = embedded.resolve(load_settings(args).settings)
    was = control.resume(settings)
    print(f"the fleet of {settings.dataset!r} {'goes on' if was else 'was not paused'}")
    return 0
