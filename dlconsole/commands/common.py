"""What every command does first."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlconsole.config import Loaded


def load_settings(args: argparse.Namespace) -> Loaded:
    """The settings of this run: flags are those arguments whose `dest` is a dotted settings key.

    Prints the warnings to stderr. Raises ConfigError.
    """
    from dlconsole.config import load

    flags = {
        key: value
        for key, value in vars(args).items()
        if "." in key or key in {"redis", "dataset", "context", "read_only"}
    }
    loaded = load(flags, args.config)
    for warning in loaded.warnings:
        print(f"dlconsole: warning: {warning}", file=sys.stderr)
    return loaded
