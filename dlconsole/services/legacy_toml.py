"""What was taken over from a legacy `setting.py`, as a settings file: its text, and a file where none is."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dlconsole.errors import ConfigError
from dlconsole.services.legacy_settings import DATASET, REDIS, Imported, Placed
from dlconsole.settings import mask_url
from dlconsole.units import printable

_MOST_NAMES: Final = 20
_SECTIONS: Final = ("worker", "guard", "feed", "errors")


def as_toml(made: Imported, *, masked: bool = False) -> str:
    """The file's text; `masked`: with `***` for the password."""
    lines = [
        *_comment(f"Made by `dlconsole config import-legacy` of {made.path.absolute()}"),
        f"context = {_quoted(made.name)}",
        "",
        f"[contexts.{made.name if re.fullmatch(r'[A-Za-z0-9_-]+', made.name) else _quoted(made.name)}]",
    ]
    for key in (REDIS, DATASET):
        if key in made.values:
            lines += _entry(key, made.values[key], masked=masked)
        else:
            lines += _comment(f'{key} = "...", which was not found: fill it in; the reason is below')
    for section in _SECTIONS:
        placed = {key: value for key, value in made.values.items() if key.startswith(f"{section}.")}
        if placed:
            lines += ["", f"[{section}]"]
        for key, value in placed.items():
            lines += _entry(key.partition(".")[2], value, masked=masked)
    said = list(remarks(made))
    if said:
        lines += ["", *_comment("What has no place above, and why:")]
        for text in said:
            lines += _comment(f"- {text}")
    return "\n".join(lines) + "\n"


def remarks(made: Imported) -> Iterator[str]:
    """What a reader should know beyond the values, one line each; nothing in it is a password."""
    for name, why in made.reasons.items():
        yield printable(f"{name} {why}" if why.startswith("is ") else f"{name}: {why}")
    if made.unknown:
        shown = ", ".join(made.unknown[:_MOST_NAMES])
        more = len(made.unknown) - _MOST_NAMES
        yield printable(f"no settings of the scripts: {shown}" + (f" and {more} more" if more > 0 else ""))
    for text in made.not_run[:_MOST_NAMES]:
        yield printable(f"not run, so what it does is not known: {text}")
    if len(made.not_run) > _MOST_NAMES:
        yield f"not run: {len(made.not_run) - _MOST_NAMES} more"


def write_new(path: Path, text: str) -> None:
    """A file that only its owner can read, there as a whole or not at all. Raises ConfigError, also where
    something has that name.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:100]}-", dir=path.absolute().parent)  # 0600
        try:
            with open(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.link(name, path)  # unlike a rename it replaces nothing
        finally:
            os.unlink(name)
    except FileExistsError:
        raise ConfigError(f"{path}: exists; name another file, or move it away") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def _entry(name: str, placed: Placed, *, masked: bool) -> Iterator[str]:
    words = ": ".join(filter(None, (placed.source, placed.remark)))
    if words:
        yield from _comment(words)
    value = placed.value
    if isinstance(value, str):
        value = _quoted(mask_url(value) if masked and name == REDIS else value)
    yield f"{name} = {value}"


def _quoted(text: str) -> str:
    """A TOML string: of printable text, as all values are, JSON's is one."""
    return json.dumps(text, ensure_ascii=False)


def _comment(text: str) -> Iterator[str]:
    """Lines of a comment. Whatever the text came from, it ends none of them."""
    words, line = printable(text).split(" "), "#"
    for word in words:
        if len(line) + len(word) > 105 and line != "#":
            yield line
            line = "#  "
        line += f" {word}"
    yield line
