"""The order of a window of tasks in which neighbours are of different hosts.

A list sorted by host makes workers wait for that host's turns. Each host's tasks are spread evenly over the
window: the n-th of m stands at (n + phase) / m of it. Phases are steps of the golden ratio, so hosts with one
task each do not all stand at the same place. Nothing is random: the same window has the same order always,
which is what a feeder that goes on in the middle of one relies on.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

_HOST: Final = re.compile(rb'"img_url": ?"[A-Za-z]+://(?:[^/?#@"]*@)?([^/:?#"]*)')
_PHASE: Final = 0.6180339887498949


def spread(items: Sequence[bytes]) -> list[int]:
    """The order, as indices of `items`, which are tasks as `TaskWriter` makes them. Two neighbours are of one
    host only where no order is without such.
    """
    of_host: dict[bytes, list[int]] = {}
    search = _HOST.search
    for index, item in enumerate(items):
        found = search(item)
        of_host.setdefault(found[1].lower() if found else b"", []).append(index)
    places = [
        ((turn + number * _PHASE % 1) / len(indices), number, index)
        for number, indices in enumerate(of_host.values())
        for turn, index in enumerate(indices)
    ]
    places.sort()
    return [index for _, index in _apart((number, index) for _, number, index in places)]


def _apart(tasks: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """(host, task) in nearly the same order, so that neighbours are of different hosts."""
    order: list[tuple[int, int]] = []
    held: deque[tuple[int, int]] = deque()  # all of one host, which is the last one's
    last = -1
    for task in tasks:
        if task[0] == last:
            held.append(task)
            continue
        order.append(task)
        last = task[0]
        if held and held[0][0] != last:
            order.append(held.popleft())
            last = order[-1][0]
    return _put_between(order, held) if held else order


def _put_between(order: list[tuple[int, int]], held: deque[tuple[int, int]]) -> list[tuple[int, int]]:
    """Put those that found no place, all of one host, where none of it is beside them; the rest last."""
    host = held[0][0]
    found: list[tuple[int, int]] = []
    before = -1
    for task in order:
        if held and host not in (before, task[0]):
            found.append(held.popleft())
        found.append(task)
        before = task[0]
    return found + list(held)
