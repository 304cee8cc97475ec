"""A ledger in numbers: one task counted once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from dlconsole.services.ledger_files import Found
from dlconsole.services.ledger_lines import Line
from dlconsole.services.ledger_merge import Merger, Reading, Watch

_BITS: Final = 12


class _Facts(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What of a line is counted, in the order of `_FACTS`."""

    outcome: str
    kind: str | None
    bytes: int
    format: str
    width: int
    height: int
    attempts: int
    started_ms: int
    ended_ms: int


_FACTS: Final = attrgetter(*_Facts.__struct_fields__)


class Sizes:
    """How large things are: whole numbers from 0 on, kept to 12 bits, so that numbers below 4096 are exact
    and greater ones right to a 2000th.
    """

    def __init__(self) -> None:
        self._counts: npt.NDArray[np.int64] = np.zeros(65 << (_BITS - 1), np.int64)
        self.count = 0
        self.total = 0
        self.greatest = 0

    def add(self, values: Sequence[int]) -> None:
        """Count these."""
        if not values:
            return
        numbers = np.array(values, np.int64)
        # floor(log2), exact also where a float rounds up to the next power of two
        shift = np.maximum(np.frexp(numbers.astype(np.float64))[1] - _BITS, 0)
        places = (shift.astype(np.int64) << (_BITS - 1)) + (numbers >> shift)
        np.add.at(self._counts, places, 1)
        self.count += len(values)
        self.total += sum(values)
        self.greatest = max(self.greatest, int(numbers.max()))

    def percentile(self, percent: float) -> int | None:
        """The least number that is not exceeded by so many percent of all; None where there are none."""
        if not self.count:
            return None
        wanted = max(1, -(-self.count * percent // 100))
        place = int(np.searchsorted(np.cumsum(self._counts), wanted))
        shift = max((place >> (_BITS - 1)) - 1, 0)
        return (place - (shift << (_BITS - 1))) << shift


@dataclass(slots=True)
class LedgerStats:
    """What the last lines of all tasks say together. Times are ms since the epoch, by the clocks of the
    workers' hosts; None where there is none. `width` and `height` are in pixels, of those images whose header
    says them, `bytes` of all stored ones.
    """

    stored: int = 0
    failed: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    width: Sizes = field(default_factory=Sizes)
    height: Sizes = field(default_factory=Sizes)
    bytes: Sizes = field(default_factory=Sizes)
    first_ms: int | None = None
    last_ms: int | None = None

    @property
    def tasks(self) -> int:
        """How many there are."""
        return self.stored + self.failed

    @property
    def success_ratio(self) -> float | None:
        """Stored of all, 0 to 1; None where there are none."""
        return self.stored / self.tasks if self.tasks else None


def stats(found: Found, temp: Path, watch: Watch) -> tuple[LedgerStats, Reading]:
    """Count a ledger. Raises LedgerError."""
    counted = LedgerStats()
    decoder = msgspec.json.Decoder(_Facts)
    with Merger(found, Line, temp, watch) as merger:
        merger.read(_facts)
        for kept in merger.kept():
            _count(counted, decoder.decode_lines(b"\n".join(kept)))
    return counted, merger.reading


def _facts(_raws: Sequence[bytes], lines: Sequence[Line]) -> Iterable[bytes]:
    return map(msgspec.json.Encoder().encode, map(_FACTS, lines))


def _count(counted: LedgerStats, facts: list[_Facts]) -> None:
    stored = [fact for fact in facts if fact.outcome == "stored"]
    counted.stored += len(stored)
    counted.failed += len(facts) - len(stored)
    if len(stored) < len(facts):
        counted.kinds.update(fact.kind or "unknown" for fact in facts if fact.outcome != "stored")
    counted.formats.update(fact.format or "unknown" for fact in stored)
    counted.attempts.update([fact.attempts for fact in facts])
    counted.bytes.add([fact.bytes for fact in stored])
    sized = [fact for fact in stored if fact.width and fact.height]
    counted.width.add([fact.width for fact in sized])
    counted.height.add([fact.height for fact in sized])
    times = [fact.ended_ms for fact in facts if fact.ended_ms]
    if times:
        counted.last_ms = max(counted.last_ms or 0, *times)
    starts = [fact.started_ms for fact in facts if fact.started_ms]
    if starts:
        counted.first_ms = min(counted.first_ms or starts[0], *starts)
