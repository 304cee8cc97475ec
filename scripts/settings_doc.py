"""Writes docs/settings.md from the settings model and the commands' flags: python scripts/settings_doc.py"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from dlconsole import cli
from dlconsole.config import variable
from dlconsole.settings import REDIS_RULE, ContextSettings, Section, Settings, descriptions, rule_of
from dlconsole.units import BYTES_RULE, SECONDS_RULE

TARGET = Path(__file__).resolve().parents[1] / "docs" / "settings.md"
_HEAD = """\
# Settings

Written by `scripts/settings_doc.py` from the model in `dlconsole/settings.py`; a test holds them equal.

Values are merged in this order, later ones win: defaults, the settings file, the environment, flags.

- **File**: TOML, in `$XDG_CONFIG_HOME/dlconsole/config.toml` (`~/.config/dlconsole/config.toml`), or
  named by `--config` or `DLCONSOLE_CONFIG`; then it must exist. `dlconsole config path` says which.
- **Environment**: `DLCONSOLE_` and the key in capitals, with `__` for the dot:
  `DLCONSOLE_WORKER__BATCH=500`. Lists are separated by commas.
- **Flags**: in the tables below; each belongs to the commands named with it.
- **Contexts**: a context's values stand just below whatever chose it. Chosen by `--context` they beat
  the environment; chosen by `context = "NAME"` in the file they beat only the file.
- **A time** is a number of seconds or text such as `"500ms"`, `"20s"`, `"5m"`, `"1h"`.
- **A size** is a number of bytes or text such as `"512KiB"`, `"10MB"`, `"4GiB"`.
  Limits are given in seconds and in bytes.
{redis_url}

A key or variable that does not exist, or a value of the wrong type, is refused with its source, its
name and what is accepted. `dlconsole config show` prints every value and where it comes from, with
passwords masked.
"""
_DEFAULTS = {
    "state_dir": "~/.local/state/dlconsole",
    "worker.store_dir": "./store",
    "errors.dir": "./error_task",
    "feed.done_file": "./done_part.txt",
    "feed.reject_dir": "./feed_rejects",
    "fetch.max_bytes": "32MiB",
}
"""Defaults as a reader would write them: they depend on where the program is started, or are long."""
_SHORT = {SECONDS_RULE: "a time", BYTES_RULE: "a size", REDIS_RULE: "a Redis URL"}
"""What the head of the page explains once."""
_ONE_COMMAND_EACH = ("redis", "dataset", "context")


def page() -> str:
    """The whole page: one table for the top of the file, one a section, one for contexts."""
    flags = _flags()
    fields = Settings.model_fields
    top = {name: field for name, field in fields.items() if _section(field) is None and name != "contexts"}
    redis_url = textwrap.fill(f"- **A Redis URL** is {REDIS_RULE}.", 100, subsequent_indent="  ")
    parts = [_HEAD.format(redis_url=redis_url), "\n## The top of the file\n\n"]
    parts.append(_table(top, descriptions(Settings), "", flags))
    for name, field in fields.items():
        section = _section(field)
        if section is not None:
            table = _table(section.model_fields, descriptions(section), f"{name}.", flags)
            parts.append(_heading(section) + table)
    parts.append(_heading(ContextSettings))
    parts.append("Its variables are `DLCONSOLE_CONTEXTS__NAME__KEY`. None of its keys has a default.\n\n")
    parts.append("| key | what it is | accepted |\n|---|---|---|\n")
    texts = descriptions(ContextSettings)
    for name, field in ContextSettings.model_fields.items():
        parts.append(f"| `{name}` | {texts[name]} | {_accepted(field)} |\n")
    return "".join(parts)


def _heading(section: type[Section]) -> str:
    """The docstring of a section, such as "`[fetch]`: limits of one fetch.", as heading and sentence."""
    doc = " ".join((section.__doc__ or "").split())
    name = doc[doc.index("`[") : doc.index("]`") + 2]
    sentence = doc.removeprefix(name + ": ").replace(f", {name}", "")
    return f"\n## {name}\n\n{sentence[0].upper()}{sentence[1:]}\n\n"


def _table(fields: dict[str, FieldInfo], texts: dict[str, str], prefix: str, flags: dict[str, str]) -> str:
    rows = ["| key | default | what it is | accepted | flag |\n|---|---|---|---|---|\n"]
    for name, field in fields.items():
        key = prefix + name
        cells = (f"`{name}`", _default(key, field), texts[name], _accepted(field), flags.get(key, ""))
        rows.append(f"| {' | '.join(cells)} |\n")
    rows.append(f"\nExample of a variable: `{variable(prefix + next(iter(fields)))}`.\n")
    return "".join(rows)


def _default(key: str, field: FieldInfo) -> str:
    value: Any = _DEFAULTS.get(key) or field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    whole = isinstance(value, float) and value.is_integer()
    return f"`{json.dumps(int(value) if whole else value)}`"


def _accepted(field: FieldInfo) -> str:
    rule = rule_of(field)
    for long, short in _SHORT.items():
        rule = rule.replace(long + ";", short).replace(long, short)
    return rule.replace("'", "`")


def _section(field: FieldInfo) -> type[Section] | None:
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _flags() -> dict[str, str]:
    """Dotted key → the flag that sets it, with the commands that have it."""
    found: dict[str, tuple[str, list[str]]] = {}
    for command, flag, key in _options():
        found.setdefault(key, (flag, []))[1].append(command)
    return {
        key: f"`{flag}`" + ("" if key in _ONE_COMMAND_EACH else f" ({', '.join(commands)})")
        for key, (flag, commands) in found.items()
    }


def _options() -> Iterator[tuple[str, str, str]]:
    for command in cli.COMMANDS:
        parser, _ = cli._parser_for([command])  # noqa: SLF001
        for action in parser._actions:  # noqa: SLF001  (argparse has no public list of its options)
            if "." in action.dest or action.dest in {*_ONE_COMMAND_EACH, "read_only"}:
                yield command, action.option_strings[0], action.dest


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
