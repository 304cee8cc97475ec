"""What a row of a benchmark is, and how a program measures those that are asked for."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from bench.rig import EXIT_CANNOT, EXIT_FAIL, NotHere, Ratio, RigError, progress

if TYPE_CHECKING:
    from bench.fetch_rig import Bench


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: its ratio, or why there is none. `lines` and `figures` are what stands behind it,
    for people and for machines; `broken`: it could have been measured here.
    """

    name: str
    what: str
    ratio: Ratio | None = None
    why: str = ""
    broken: bool = False
    lines: tuple[str, ...] = ()
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """PASS, FAIL, or why it was not measured."""
        return self.ratio.verdict if self.ratio is not None else f"not measured: {self.why}"

    def text(self) -> str:
        """For people."""
        first = self.ratio.line() if self.ratio is not None else f"{self.what:<42} {self.verdict}"
        return "\n".join((f"{self.name}: {first}", *(f"    {line}" for line in self.lines)))

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        ratio = self.ratio.to_json() if self.ratio is not None else None
        return {"what": self.what, "verdict": self.verdict, "ratio": ratio, **self.figures}


Modules = Mapping[str, Sequence[str]]
"""A module's name → its rows. It has `measure(bench, wanted)`, which gives the rows that are wanted, or raises
RigError.
"""


def _measured(modules: Modules, bench: Bench) -> Iterator[Row]:
    for name, rows in modules.items():
        todo = [row for row in rows if row in bench.args.only]
        if not todo:
            continue
        started = time.monotonic()
        progress(f"{', '.join(todo)}:")
        for row in _rows_of(name, todo, bench):
            progress(f"  {row.name}: {row.verdict}")
            yield row
        progress(f"  {time.monotonic() - started:.0f} s")


def _rows_of(module: str, todo: Sequence[str], bench: Bench) -> Iterator[Row]:
    """A module's rows; what it cannot measure is said in place of each that is still owed."""
    owed = list(todo)
    measure: Callable[[Bench, set[str]], Iterable[Row]] = import_module(module).measure
    try:
        for row in measure(bench, set(todo)):
            owed.remove(row.name)
            yield row
    except RigError as error:
        for name in owed:
            yield Row(name, name, why=str(error), broken=not isinstance(error, NotHere))


def report(modules: Modules, bench: Bench, facts: Mapping[str, str]) -> int:
    """Measure the rows of `--only` and print them, with the facts of the machine: for people as they come, with
    `--json` as one object. EXIT_FAIL where one is below its floor, EXIT_CANNOT where measuring one went wrong.
    """
    as_json, note = bench.args.json, f"{bench.cores.note}; files on {bench.memory_kind}"
    progress(note)
    if not as_json:
        print(", ".join(f"{name}: {value}" for name, value in facts.items()))
        print(f"{note}; median [min-max] of the rounds\n", flush=True)
    rows = []
    for row in _measured(modules, bench):
        rows.append(row)
        if not as_json:
            print(f"{row.text()}\n", flush=True)
    if as_json:
        found = {"machine": facts, "cores": bench.cores.note, "files_on": bench.memory_kind}
        print(json.dumps(found | {"rows": {row.name: row.to_json() for row in rows}}, indent=1))
    if any(row.verdict == "FAIL" for row in rows):
        return EXIT_FAIL
    return EXIT_CANNOT if any(row.broken for row in rows) else 0


def names_of(modules: Modules) -> tuple[str, ...]:
    """All rows."""
    return tuple(row for rows in modules.values() for row in rows)


def add_only(parser: argparse.ArgumentParser, modules: Modules) -> None:
    """`--only`: which rows."""
    known = names_of(modules)

    def rows(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"no row {', '.join(unknown)}; there are {', '.join(known)}")
        return names

    parser.add_argument(
        "--only", type=rows, default=known, metavar="ROW[,ROW]", help=f"measure these of {', '.join(known)}"
    )
