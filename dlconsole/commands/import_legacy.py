"""`dlconsole config import-legacy`: the legacy scripts' setting.py → a settings file."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from typing import TYPE_CHECKING, Any

from dlconsole.errors import UsageError

if TYPE_CHECKING:
    from dlconsole.services.legacy_settings import Imported

EXIT_MISSING = 1


def run(args: argparse.Namespace) -> int:
    """Read, translate, write; 1 where the Redis or the dataset could not be found. Raises ConfigError."""
    from dlconsole.model import DATASET_RULE, is_dataset_name
    from dlconsole.services import legacy_toml
    from dlconsole.services.legacy_settings import translate
    from dlconsole.services.legacy_source import read_source

    if args.name is not None and not is_dataset_name(args.name):
        raise UsageError(f"--name takes {DATASET_RULE}")
    made = translate(read_source(args.file), args.name or "")
    if args.output is not None:
        legacy_toml.write_new(args.output, legacy_toml.as_toml(made))
    if args.json:
        print(json.dumps(_as_json(made, args), indent=2, ensure_ascii=False))
        return EXIT_MISSING if made.missing else 0
    for remark in legacy_toml.remarks(made):
        print(f"dlconsole: {remark}", file=sys.stderr)
    if made.missing:
        print(f"dlconsole: not found, fill it in: {', '.join(made.missing)}", file=sys.stderr)
    if args.output is not None:
        name = shlex.quote(str(args.output))
        print(f"{args.output} is written; look: dlconsole config show --config {name}", file=sys.stderr)
        return EXIT_MISSING if made.missing else 0
    masked = sys.stdout.isatty()
    text = legacy_toml.as_toml(made, masked=masked)
    print(text, end="")
    if masked and text != legacy_toml.as_toml(made):
        print("dlconsole: the password is not shown; --output FILE writes it", file=sys.stderr)
    return EXIT_MISSING if made.missing else 0


def _as_json(made: Imported, args: argparse.Namespace) -> dict[str, Any]:
    """All of it but the password."""
    from dlconsole.services import legacy_toml
    from dlconsole.settings import mask_url

    return {
        "context": made.name,
        "output": str(args.output) if args.output is not None else None,
        "missing": made.missing,
        "settings": {
            key: {
                "value": mask_url(str(placed.value)) if key == "redis" else placed.value,
                "from": placed.source,
                "remark": placed.remark,
            }
            for key, placed in made.values.items()
        },
        "remarks": list(legacy_toml.remarks(made)),
    }
