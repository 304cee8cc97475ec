"""Pause the whole fleet: no worker of dlconsole takes another task until `dlconsole resume`.

What is being fetched is finished. Legacy workers know no pause and go on.

example:
  dlconsole pause --why "moving the store" --dataset laion5b
"""

from __future__ import annotations

import argparse

from dlconsole.commands.common import load_settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("--why", default="", metavar="TEXT", help="shown with the pause on every console")


def run(args: argparse.Namespace) -> int:
    """Do it; 0 also where the fleet was paused before."""
    from dlconsole.services import control, embedded

    settings = embedded.resolve(load_settings(args).settings)
    was = control.pause(settings, why=args.why)
    already = " (it was before)" if was else ""
    print(f"the fleet of {settings.dataset!r} is paused{already}; go on with: dlconsole resume")
    return 0
